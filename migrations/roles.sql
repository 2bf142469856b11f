-- Roles and schema: run before the numbered migrations, as often as you like.
--
-- Roles belong to the whole cluster while the installer's lock belongs to one database, so another database's
-- installer may create the same role at the same moment: "already there" is success, whoever was first.
DO $roles$
DECLARE
    role_name text;
    relay_is_new boolean := NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'statecast_relay');
    schema_is_new boolean := NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'statecast');
    -- From version 16 on, membership alone no longer allows SET ROLE.
    may_become CONSTANT text := CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000
                                     THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['statecast_owner', 'statecast_writer', 'statecast_relay'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name);
        BEGIN
            -- NOINHERIT: the relay uses the owner's rights only where it says SET ROLE.
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN %s', role_name,
                                      CASE role_name WHEN 'statecast_relay' THEN 'NOINHERIT' ELSE 'INHERIT' END);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role "%" may not create the role "%"', current_user, role_name
                    USING ERRCODE = 'insufficient_privilege',
                          HINT = pg_catalog.format('Run the installation as a superuser, or let one run: '
                              'ALTER ROLE %I CREATEROLE', current_user);
        END;
    END LOOP;

    BEGIN
        IF NOT pg_catalog.pg_has_role(current_user, 'statecast_owner', may_become) THEN
            GRANT statecast_owner TO CURRENT_USER;
        END IF;
        -- Granted once: whoever revokes it (and runs "statecast maintain" as somebody else) is not overruled later.
        IF (relay_is_new OR schema_is_new)
           AND NOT pg_catalog.pg_has_role('statecast_relay', 'statecast_owner', may_become) THEN
            GRANT statecast_owner TO statecast_relay;
        END IF;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN
            NULL;
        WHEN insufficient_privilege THEN
            RAISE EXCEPTION 'role "%" may not grant the role "statecast_owner"', current_user
                USING ERRCODE = 'insufficient_privilege',
                      HINT = pg_catalog.format('Run the installation as a superuser, or let one run: '
                          'ALTER ROLE %I CREATEROLE; GRANT statecast_owner TO %I, statecast_relay%s',
                          current_user, current_user,
                          CASE may_become WHEN 'SET' THEN '; GRANT statecast_owner TO ' ||
                              pg_catalog.quote_ident(current_user) || ' WITH ADMIN OPTION' ELSE '' END);
    END;

    IF schema_is_new THEN
        BEGIN
            CREATE SCHEMA statecast AUTHORIZATION statecast_owner;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role "%" may not create a schema in the database "%"',
                    current_user, pg_catalog.current_database()
                    USING ERRCODE = 'insufficient_privilege',
                          HINT = pg_catalog.format('Let the owner of the database run: GRANT CREATE ON DATABASE %I TO %I',
                              pg_catalog.current_database(), current_user);
        END;
    END IF;
END
$roles$;
