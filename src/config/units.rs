//! Durations (`5ms`) and sizes (`8MiB`).
