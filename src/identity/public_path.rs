//! Paths and requests that pass without a credential.

use crate::error::ConfigError;

/// Marks a request that passes without an identity on purpose; inserted into the request's extensions.
///
/// The layers behind [`AuthLayer`](super::AuthLayer) let such a request pass. A request with neither an
/// identity nor this mark is answered 500: a layer is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublicPath {
    /// No credential was sent, and the layer was told that none is needed.
    Anonymous,
    /// The path was named public.
    Path,
    /// A browser asks whether it may send the real request (CORS preflight).
    Preflight,
}

/// Paths that need no credential: each exact (`/health`) or everything below (`/docs/*`).
///
/// Matched against the path as it was sent, byte for byte: case counts and nothing is decoded. A path with a
/// `.` or `..` segment, an empty segment, a backslash or a percent-encoded dot or slash never matches a
/// prefix, because a service further in could read it as a path outside.
#[derive(Clone, Debug, Default)]
pub struct PathSet {
    exact: Vec<Box<str>>,
    prefixes: Vec<Box<str>>,
}

impl PathSet {
    /// Checks the patterns. `/docs/*` covers everything below `/docs/`, but neither `/docs` nor `/docs/`
    /// itself.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the pattern, such as `public_paths[1]`, when it does not start with `/`, has a
    /// `*` anywhere but as its last segment, or holds a query.
    pub fn new(patterns: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, ConfigError> {
        let mut set = Self::default();
        for (place, pattern) in patterns.into_iter().enumerate() {
            let pattern = pattern.as_ref();
            set.add(pattern)
                .map_err(|reason| ConfigError::new(format!("public_paths[{place}]"), reason))?;
        }
        Ok(set)
    }

    fn add(&mut self, pattern: &str) -> Result<(), &'static str> {
        if !pattern.starts_with('/') {
            return Err("a public path starts with a slash: write `/health` or `/docs/*`");
        }
        if pattern.contains(['?', '#']) {
            return Err("a public path has no query or fragment: remove what follows the path");
        }
        let prefix = pattern.strip_suffix('*');
        if prefix.unwrap_or(pattern).contains('*') || prefix.is_some_and(|p| !p.ends_with('/')) {
            return Err("a star may only be the last segment: write `/docs/*`");
        }
        match prefix {
            Some(prefix) => self.prefixes.push(prefix.into()),
            None => self.exact.push(pattern.into()),
        }
        Ok(())
    }

    /// Whether the path needs no credential.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.exact.iter().any(|exact| **exact == *path)
            || self.prefixes.iter().any(|prefix| {
                path.strip_prefix(&**prefix)
                    .is_some_and(|rest| !rest.is_empty() && is_plain(rest))
            })
    }
}

/// Whether no reader of the path could see it leave the prefix.
fn is_plain(rest: &str) -> bool {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    !rest.contains('\\')
        && rest
            .split('/')
            .all(|segment| !matches!(segment, "" | "." | "..") && !hides_a_separator(segment))
}

fn hides_a_separator(segment: &str) -> bool {
    // %25 as well: decoded twice it could become any of the others.
    segment.as_bytes().windows(3).any(|code| {
        matches!(
            code,
            [b'%', b'2', b'e' | b'E' | b'f' | b'F' | b'5'] | [b'%', b'5', b'c' | b'C']
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_what_is_below_a_prefix_and_nothing_beside_it() {
        let set = PathSet::new(["/health", "/docs/*"]).unwrap();
        for path in [
            "/health",
            "/docs/a",
            "/docs/a/b.html",
            "/docs/a/",
            "/docs/...",
        ] {
            assert!(set.contains(path), "{path}");
        }
        for path in [
            "/", "/Health", "/health/", "/docs", "/docs/", "/docsx", "/v1",
        ] {
            assert!(!set.contains(path), "{path}");
        }
    }

    #[test]
    fn a_path_that_could_leave_the_prefix_is_not_public() {
        let set = PathSet::new(["/docs/*"]).unwrap();
        for path in [
            "/docs/../v1",
            "/docs/..",
            "/docs/./a",
            "/docs//v1",
            "/docs/a//",
            "/docs/%2e%2E/v1",
            "/docs/..%2fv1",
            "/docs/..%5Cv1",
            "/docs/%252e%252e/v1",
            "/docs/..\\v1",
        ] {
            assert!(!set.contains(path), "{path}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_work_is_refused_with_its_place() {
        for pattern in ["", "health", "/a*", "/a/*/b", "/a/**", "/a?b", "*"] {
            let error = PathSet::new(["/ok", pattern]).unwrap_err();
            assert_eq!(error.path(), "public_paths[1]", "{pattern}");
        }
    }
}
