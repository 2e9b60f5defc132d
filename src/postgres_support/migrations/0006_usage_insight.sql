-- Days of usage, made from the hours of days that are over, so that a question about a month reads thirty rows of a
-- series and not seven hundred.
CREATE TABLE usage_days (LIKE usage_minutes INCLUDING ALL);
ALTER TABLE usage_days ADD FOREIGN KEY (series) REFERENCES usage_series (id);
CREATE INDEX usage_days_by_time ON usage_days USING brin (start);
CREATE INDEX usage_hours_by_time ON usage_hours USING brin (start);

-- The days whose rows are there, or are being made. A change of one of their hours takes them out again.
CREATE TABLE usage_days_made (
    day timestamptz PRIMARY KEY,
    ready boolean NOT NULL,
    token bigint NOT NULL
);

-- Whoever changes hours holds the lock together with others who do, and whoever begins to make a day holds it alone for a
-- moment: from then on each change of that day's hours sees that the day is being made.
CREATE FUNCTION hours_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(8390322045806929253);
    DELETE FROM tollgate.usage_days_made
        WHERE day IN (SELECT DISTINCT date_trunc('day', start, 'UTC') FROM changed);
    RETURN NULL;
END $$;
CREATE TRIGGER hours_added AFTER INSERT ON usage_hours
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hours_changed();
CREATE TRIGGER hours_updated AFTER UPDATE ON usage_hours
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hours_changed();

-- Breaches of objectives that somebody was told of, or is being told of.
CREATE TABLE usage_alerts (
    objective text NOT NULL,
    tenant text NOT NULL,
    promise text NOT NULL,
    claimed_at timestamptz NOT NULL,
    told boolean NOT NULL DEFAULT false,
    PRIMARY KEY (objective, tenant, promise)
);
