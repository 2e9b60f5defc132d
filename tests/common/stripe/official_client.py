"""What the official Python client makes of the emulator: one line for each call. Arguments: URL and secret."""

import sys
import time

import stripe

url, secret = sys.argv[1:]
stripe.api_base = url
stripe.api_key = secret
stripe.max_network_retries = 0


def create(value, identifier, key, **more):
    return stripe.billing.MeterEvent.create(
        event_name="api_calls",
        payload={"stripe_customer_id": "cus_1", "value": value},
        identifier=identifier,
        idempotency_key=key,
        **more,
    )


def refused(*arguments, **more):
    try:
        create(*arguments, **more)
        print("nothing was refused")
    except stripe.StripeError as error:
        print(type(error).__name__, error.code or None)


event = create("3", "first", "key-1")
print("created", event.identifier, event.payload["value"])
event = create("3", "first", "key-1")
print("replayed", event.identifier, event.payload["value"])
refused("3", "first", "key-2")
refused("4", "first", "key-1")
refused("1000000000000000", "second", "key-3")
refused("1", "third", "key-4", timestamp=int(time.time()) - 36 * 86400)
stripe.api_key = "another"
refused("1", "fourth", "key-5")
