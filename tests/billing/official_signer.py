"""Signs bodies with the official Stripe package: a header and a body for each, a line apiece. Arguments: the secret, and
our own header of the body {"id":"evt_ours"}, which the package must accept."""

import json
import sys
import time

from stripe import WebhookSignature

secret, ours = sys.argv[1:]
WebhookSignature.verify_header('{"id":"evt_ours"}', ours, secret, tolerance=300)
print("accepts ours")

for body in (
    json.dumps({"id": "evt_1", "type": "invoice.paid"}),
    json.dumps({"id": "evt_2", "name": "Zoë ✓"}, ensure_ascii=False),
    "{}",
):
    now = int(time.time())
    print(f"t={now},v1={WebhookSignature._compute_signature(f'{now}.{body}', secret)}")
    print(body)
