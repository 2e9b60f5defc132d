-- What usage is counted apart for. The digest is that of all columns behind it, which may be longer than an index takes.
CREATE TABLE usage_series (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    tenant text NOT NULL,
    environment text NOT NULL,
    plan text NOT NULL,
    api text NOT NULL,
    method text NOT NULL,
    route text NOT NULL,
    country text
);
CREATE INDEX usage_series_of_tenant ON usage_series (tenant, api);

-- Totals of a minute. Sums of 64-bit numbers are numeric, as they may need more digits.
CREATE TABLE usage_minutes (
    series bigint NOT NULL REFERENCES usage_series (id),
    start timestamptz NOT NULL,
    calls bigint NOT NULL,
    refused bigint NOT NULL,
    failed bigint NOT NULL,
    aborted bigint NOT NULL,
    waived bigint NOT NULL,
    overage bigint NOT NULL,
    deprecated bigint NOT NULL,
    status_1xx bigint NOT NULL,
    status_2xx bigint NOT NULL,
    status_3xx bigint NOT NULL,
    status_4xx bigint NOT NULL,
    status_5xx bigint NOT NULL,
    request_bytes numeric NOT NULL,
    response_bytes numeric NOT NULL,
    cost_nanos numeric NOT NULL,
    -- HdrHistogram V2 of microseconds; empty where no call was let through.
    latency bytea NOT NULL,
    PRIMARY KEY (series, start)
);

CREATE TABLE usage_minute_quantities (
    series bigint NOT NULL REFERENCES usage_series (id),
    start timestamptz NOT NULL,
    name text NOT NULL,
    amount numeric NOT NULL,
    overage numeric NOT NULL,
    PRIMARY KEY (series, start, name)
);

-- The same by the hour, written in the same transactions, for questions about weeks.
CREATE TABLE usage_hours (LIKE usage_minutes INCLUDING ALL);
ALTER TABLE usage_hours ADD FOREIGN KEY (series) REFERENCES usage_series (id);
CREATE TABLE usage_hour_quantities (LIKE usage_minute_quantities INCLUDING ALL);
ALTER TABLE usage_hour_quantities ADD FOREIGN KEY (series) REFERENCES usage_series (id);

-- Until when a tenant's usage was invoiced. What comes later for a time before it is counted, and noted as a correction.
CREATE TABLE usage_closings (
    tenant text PRIMARY KEY,
    closed_until timestamptz NOT NULL
);
CREATE TABLE usage_corrections (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    noted_at timestamptz NOT NULL DEFAULT now(),
    tenant text NOT NULL,
    series bigint NOT NULL REFERENCES usage_series (id),
    start timestamptz NOT NULL,
    calls bigint NOT NULL,
    billable_calls bigint NOT NULL,
    overage bigint NOT NULL,
    request_bytes numeric NOT NULL,
    response_bytes numeric NOT NULL,
    cost_nanos numeric NOT NULL,
    -- By name: {"tokens": {"amount": "812", "overage": "0"}}; as text, for readers whose numbers have fewer digits.
    quantities jsonb NOT NULL
);
CREATE INDEX usage_corrections_of_tenant ON usage_corrections (tenant, id);

-- How far a stream was read, written in the transaction that counted its entries.
CREATE TABLE usage_positions (
    stream text PRIMARY KEY,
    entry_millis bigint NOT NULL,
    entry_sequence numeric NOT NULL,
    events bigint NOT NULL,
    duplicates bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Entries of a stream that are no usage event which this version can count.
CREATE TABLE usage_dead_letters (
    stream text NOT NULL,
    entry text NOT NULL,
    reason text NOT NULL,
    body bytea NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, entry)
);
