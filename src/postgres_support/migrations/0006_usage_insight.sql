-- Days of usage, made from the hours of days that are over, so that a question about a month reads thirty rows of a
-- series and not seven hundred.
CREATE TABLE usage_days (LIKE usage_minutes INCLUDING ALL);
ALTER TABLE usage_days ADD FOREIGN KEY (series) REFERENCES usage_series (id);

-- The days that have hours, and whether their rows are there. A token above or below zero is that of whoever is making the
-- day; a change of one of its hours takes it away.
CREATE TABLE usage_days_made (
    day timestamptz PRIMARY KEY,
    ready boolean NOT NULL,
    token bigint NOT NULL
);
INSERT INTO usage_days_made SELECT DISTINCT date_trunc('day', start, 'UTC'), false, 0 FROM usage_hours;

-- Whoever changes hours holds the lock together with others who do, and whoever begins to make a day holds it alone for a
-- moment: from then on each change of that day's hours sees that the day is being made. A day that is noted already is only
-- read, so that writers of the current day do not wait for each other.
CREATE FUNCTION hours_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(8390322045806929253);
    INSERT INTO tollgate.usage_days_made AS made (day, ready, token)
        SELECT day, false, 0 FROM (SELECT DISTINCT date_trunc('day', start, 'UTC') AS day FROM changed) AS days
        WHERE NOT EXISTS (
            SELECT FROM tollgate.usage_days_made AS known
            WHERE known.day = days.day AND NOT known.ready AND known.token = 0
        )
        ORDER BY day
        ON CONFLICT (day) DO UPDATE SET ready = false, token = 0;
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
