//! A flood of invented keys.

use std::sync::Arc;

use tower::{Layer as _, service_fn};

use super::{call, get, invented, stand, who};
use crate::common::far_stores::{FakeKeys, FarTenants};

#[tokio::test]
async fn a_flood_of_invented_keys_displaces_no_good_one() {
    let keys = FakeKeys::slow();
    let store = Arc::clone(&keys);
    let far = stand(|builder| {
        builder
            .keys(store)
            .tenants(FarTenants::slow())
            .failure_limit(None)
    });
    let near = stand(|builder| builder.failure_limit(None));
    for (stand, n_guesses) in [(&far, 20_000), (&near, 80_000)] {
        let mut good = Vec::new();
        for n in 0..100 {
            good.push(stand.issue(&format!("tenant-{n}")).await);
        }
        let service = stand.gate.layer().layer(service_fn(who));
        for key in &good {
            assert_eq!(call(&service, get("/", &[("x-api-key", key)])).await.0, 200);
        }
        for n in 0..n_guesses {
            assert_eq!(
                call(&service, get("/", &[("x-api-key", &invented())]))
                    .await
                    .0,
                401
            );
            if n % 1_000 == 0 {
                let n_asked = keys.behaviour.n_asked();
                for key in &good {
                    assert_eq!(call(&service, get("/", &[("x-api-key", key)])).await.0, 200);
                }
                assert_eq!(keys.behaviour.n_asked(), n_asked, "after {n}");
            }
        }
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_one_costs_no_look_up_whatever_its_size() {
    let keys = FakeKeys::slow();
    let store = Arc::clone(&keys);
    let stand = stand(|builder| builder.keys(store).failure_limit(None));
    let service = stand.gate.layer().layer(service_fn(who));
    let good = invented();
    let mut bad = vec![
        String::new(),
        "x".repeat(64 * 1024),
        good[..good.len() - 1].to_owned(),
    ];
    bad.push(format!("{good}A"));
    bad.push(good.to_uppercase());
    bad.push(good.replace("live", "test"));
    for place in 0..good.len() {
        let mut key = good.clone().into_bytes();
        key[place] = if key[place] == b'q' { b'r' } else { b'q' };
        bad.push(String::from_utf8(key).expect("ASCII"));
    }
    for key in bad {
        assert_eq!(
            call(&service, get("/", &[("x-api-key", &key)])).await.0,
            401,
            "{key:.80}"
        );
    }
    assert_eq!(keys.behaviour.n_asked(), 0);
}
