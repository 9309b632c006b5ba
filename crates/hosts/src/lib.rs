//! One of several hosts.
//!
//! Each of the three servers may be a cluster, and its URL may name several hosts:
//! `amqp://user:password@a:5672,b:5672,c:5672/vhost`. A connection goes to one of them, chosen at random, so that
//! the connections of the daemons spread over the cluster. If that host does not answer or cannot be used, the next
//! one is tried.

use std::time::Duration;

use rand::seq::SliceRandom;

/// How long one of several hosts may take. A single host gets the whole time of a connection attempt.
const HOST_LIMIT: Duration = Duration::from_secs(3);

/// The same URL with each of its hosts alone.
pub fn each(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // A password may contain a comma.
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    hosts.split(',').map(|host| format!("{scheme}://{login}{host}{path}")).collect()
}

/// The hosts in random order, each with the time that it may take of a connection attempt.
pub fn shuffled<H>(hosts: &[H], limit: Duration) -> Vec<(&H, Duration)> {
    let limit = if hosts.len() > 1 { limit.min(HOST_LIMIT) } else { limit };
    let mut order: Vec<_> = hosts.iter().map(|host| (host, limit)).collect();
    order.shuffle(&mut rand::rng());
    order
}

/// Keeps the error to report when no host can be used: the last one. An error for which `is_vague` holds, such as
/// that a host is a standby, counts only if there is no other.
pub fn keep<E>(kept: &mut Option<E>, error: E, is_vague: impl Fn(&E) -> bool) {
    if kept.is_none() || !is_vague(&error) {
        *kept = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_url_with_several_hosts_is_one_url_for_each() {
        assert_eq!(
            each("amqp://app:a,b%40@one:5672,two,[::1]:7/%2f?heartbeat=10,11"),
            [
                "amqp://app:a,b%40@one:5672/%2f?heartbeat=10,11",
                "amqp://app:a,b%40@two/%2f?heartbeat=10,11",
                "amqp://app:a,b%40@[::1]:7/%2f?heartbeat=10,11",
            ]
        );
        assert_eq!(each("mysql://db/app"), ["mysql://db/app"]);
        assert_eq!(each("postgres://a,b"), ["postgres://a", "postgres://b"]);
        assert_eq!(each("no url, at all"), ["no url, at all"]);
    }

    proptest! {
        #[test]
        fn a_url_with_one_host_stays_as_it_is(url in "[a-z]{1,5}://([^,/?#@]{0,5}@)?[^,/?#@]{0,9}(/[^#]{0,5})?") {
            prop_assert_eq!(each(&url), [url.clone()]);
        }
    }

    #[test]
    fn each_host_comes_first_now_and_then_and_may_not_use_up_the_time() {
        let first: HashSet<_> = (0..100).map(|_| *shuffled(&["a", "b", "c"], LIMIT)[0].0).collect();
        assert_eq!(first.len(), 3);
        assert_eq!(shuffled(&["a", "b"], LIMIT)[1].1, HOST_LIMIT);
        assert_eq!(shuffled(&["a"], LIMIT), [(&"a", LIMIT)]);
    }

    #[test]
    fn a_vague_error_hides_no_other() {
        for (errors, kept) in [
            (["standby", "refused"], "refused"),
            (["refused", "standby"], "refused"),
            (["standby", "standby"], "standby"),
            (["refused", "silent"], "silent"),
        ] {
            let mut last = None;
            for error in errors {
                keep(&mut last, error, |error| *error == "standby");
            }
            assert_eq!(last, Some(kept));
        }
    }
}
