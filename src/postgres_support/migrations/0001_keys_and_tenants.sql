-- Keys by the digest of the key, never the key itself. What is searched or changed alone has a column; the rest of a
-- record is JSON, so that a version of the crate with another field needs no migration.
CREATE TABLE keys (
    digest bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    id text NOT NULL UNIQUE,
    tenant text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    version bigint NOT NULL CHECK (version > 0),
    rest jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX keys_of_tenant ON keys (tenant, created_at, id);

CREATE TABLE tenants (
    id text PRIMARY KEY,
    plan text NOT NULL,
    access jsonb NOT NULL DEFAULT '{"state": "active"}',
    version bigint NOT NULL CHECK (version > 0),
    rest jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX tenants_of_plan ON tenants (plan);

-- A change made by hand is a change: it gets a version, and processes hear of it.
CREATE FUNCTION count_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version <= OLD.version THEN
        NEW.version := OLD.version + 1;
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION tell_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify('tollgate.keys', encode(OLD.digest, 'hex') || ':' || OLD.version);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM pg_notify('tollgate.keys', encode(NEW.digest, 'hex') || ':' || NEW.version);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION tell_tenant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify('tollgate.tenants', OLD.id);
    END IF;
    -- The same text twice in one transaction is told once.
    IF TG_OP <> 'DELETE' THEN
        PERFORM pg_notify('tollgate.tenants', NEW.id);
    END IF;
    RETURN NULL;
END $$;

-- When a key was last used changes nothing that anybody caches.
CREATE TRIGGER count_version BEFORE UPDATE OF digest, id, tenant, created_at, expires_at, revoked_at, version, rest
    ON keys FOR EACH ROW EXECUTE FUNCTION count_version();
CREATE TRIGGER tell_update AFTER UPDATE OF digest, id, tenant, created_at, expires_at, revoked_at, version, rest
    ON keys FOR EACH ROW EXECUTE FUNCTION tell_key();
CREATE TRIGGER tell AFTER INSERT OR DELETE ON keys FOR EACH ROW EXECUTE FUNCTION tell_key();
CREATE TRIGGER count_version BEFORE UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION count_version();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON tenants FOR EACH ROW EXECUTE FUNCTION tell_tenant();
