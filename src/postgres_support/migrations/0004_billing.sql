-- Events of payment providers, each handled once.
CREATE TABLE tollgate.billing_events (
    endpoint text NOT NULL,
    event_id text NOT NULL,
    -- The digest of what the event says, so that another event of the same id is noticed.
    content bytea NOT NULL,
    state text NOT NULL CHECK (state IN ('free', 'claimed', 'done')),
    token bigint NOT NULL,
    attempts integer NOT NULL,
    claimed_until timestamptz,
    first_seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (endpoint, event_id)
);
CREATE INDEX billing_events_first_seen ON tollgate.billing_events (first_seen);

-- Events that could not be handled, until somebody looks.
CREATE TABLE tollgate.billing_dead_letters (
    endpoint text NOT NULL,
    event_id text NOT NULL,
    letter jsonb NOT NULL,
    buried_at timestamptz NOT NULL,
    PRIMARY KEY (endpoint, event_id)
);

-- What is known of the providers' customers.
CREATE TABLE tollgate.billing_accounts (
    customer text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    account jsonb NOT NULL
);
