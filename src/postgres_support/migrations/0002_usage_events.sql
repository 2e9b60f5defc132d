-- Every usage event once. The day is that of the event's time in UTC, which never changes, so an event that comes again
-- meets itself. The event itself is kept unless only totals are wanted.
CREATE TABLE usage_events (
    day date NOT NULL,
    id uuid NOT NULL,
    tenant text NOT NULL,
    time timestamptz NOT NULL,
    event jsonb,
    PRIMARY KEY (day, id)
) PARTITION BY RANGE (day);
CREATE INDEX usage_events_of_tenant ON usage_events (tenant, time);

-- The first day whose ids are kept: an event of an earlier one may have been counted already.
CREATE TABLE usage_retention (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    first_day date NOT NULL
);
INSERT INTO usage_retention (first_day) VALUES ('1970-01-01');

-- Makes a day's partition where it is missing. It runs with the rights of the tables' owner, so that whoever writes
-- events needs no right to make tables. The table is made apart and then attached, as that does not wait for readers.
CREATE FUNCTION usage_day(wanted date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part text := 'usage_events_' || to_char(wanted, 'YYYYMMDD');
BEGIN
    IF wanted IS NULL OR wanted > current_date + 3 THEN
        RAISE EXCEPTION 'a day in the future has no events';
    END IF;
    -- One process makes a partition, the others find it.
    PERFORM pg_advisory_xact_lock(8390322045806929252);
    IF EXISTS (SELECT FROM tollgate.usage_retention WHERE wanted < first_day) THEN
        RAISE EXCEPTION 'the events of this day were dropped';
    END IF;
    IF to_regclass('tollgate.' || part) IS NULL THEN
        EXECUTE format('CREATE TABLE tollgate.%I (LIKE tollgate.usage_events INCLUDING ALL)', part);
        EXECUTE format('ALTER TABLE tollgate.usage_events ATTACH PARTITION tollgate.%I FOR VALUES FROM (%L) TO (%L)',
            part, wanted, wanted + 1);
    END IF;
END $$;
