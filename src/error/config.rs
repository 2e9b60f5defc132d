use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer};

/// A setting that cannot work, found when a layer, a plan or the gate is built.
///
/// Names the field by its path, such as `plans[1].rules[0].burst`, says what is wrong and what to write
/// instead.
#[derive(Debug)]
pub struct ConfigError {
    path: String,
    reason: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ConfigError {
    /// A fault of the field at `path`; `reason` says what is wrong and how to mend it.
    #[must_use]
    pub fn new(path: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
            source: None,
        }
    }

    /// Keeps the error that revealed the fault.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts an outer part before the path: `burst` under `rules[0]` becomes `rules[0].burst`.
    #[must_use]
    pub fn under(mut self, outer: impl fmt::Display) -> Self {
        self.path = if self.path.is_empty() {
            outer.to_string()
        } else if self.path.starts_with('[') {
            format!("{outer}{}", self.path)
        } else {
            format!("{outer}.{}", self.path)
        };
        self
    }

    /// Puts another name in the place of the path's first field, keeping the place within it.
    pub(crate) fn renamed(mut self, first: &str) -> Self {
        let rest = self.path.find(['[', '.']).map_or("", |at| &self.path[at..]);
        self.path = format!("{first}{rest}");
        self
    }

    /// Reads a document of settings as JSON, naming the field that is wrong.
    pub(crate) fn read_json<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Self> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let document = Self::read(&mut deserializer)?;
        deserializer
            .end()
            .map_err(|source| Self::new("", source.to_string()))?;
        Ok(document)
    }

    /// Reads a document of settings in any format, naming the field that is wrong.
    ///
    /// Keeps of the format's own error the last line and not the error itself: some formats quote the
    /// document before it, and somebody may have written a secret there.
    pub(crate) fn read<'de, T, D>(deserializer: D) -> Result<T, Self>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = match error.path().to_string() {
                root if root == "." => String::new(),
                path => path,
            };
            let text = error.inner().to_string();
            let reason = text.lines().rfind(|line| !line.trim().is_empty());
            Self::new(path, reason.unwrap_or("cannot be read").to_owned())
        })
    }

    /// Says which file the fault is in.
    pub(crate) fn in_file(mut self, file: &std::path::Path) -> Self {
        self.reason = format!("{} (in `{}`)", self.reason, file.display()).into();
        self
    }

    /// The field's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
