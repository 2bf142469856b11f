//! Trouble with the database. The relay waits, starts again from its cursor, and never holds the application up.

mod pooler;
mod server;
mod writes;
