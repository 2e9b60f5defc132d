-- Drafts of invoices, each once. `document` is json and not jsonb, as it is kept to the byte.
CREATE TABLE invoices (
    tenant text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    id text NOT NULL UNIQUE,
    currency text NOT NULL,
    -- In the currency's smallest coin; below zero where more is given back than asked for.
    total_minor numeric(39) NOT NULL,
    document json NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, period_start, period_end, version),
    CHECK (period_start < period_end)
);
CREATE INDEX invoices_by_period ON invoices (period_start, period_end);
