-- Roles for trying out; run once, when the database is made. `statecast install` adds what is missing.
-- Of Statecast's own roles, the two that a login is put into are made here, so that it need not be done afterwards.
CREATE ROLE statecast_relay NOLOGIN NOINHERIT;
CREATE ROLE statecast_writer NOLOGIN;

-- The relay. REPLICATION lets it stream; such a login can read the whole cluster. Without it, it polls.
CREATE ROLE statecast LOGIN REPLICATION PASSWORD 'statecast' IN ROLE statecast_relay;

-- The application: its own tables, and the right to write events.
CREATE ROLE shop LOGIN PASSWORD 'shop' IN ROLE statecast_writer;
CREATE TABLE orders (id bigint PRIMARY KEY, status text NOT NULL, changed_at timestamptz NOT NULL DEFAULT now());
ALTER TABLE orders OWNER TO shop;
