//! Scripts, known to the server by their SHA-1.

use redis::Cmd;

/// A Lua script that is sent by its digest, and in full to a server that does not know it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    text: &'static str,
    sha1: String,
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self {
            text,
            sha1: redis::Script::new(text).get_hash().to_owned(),
        }
    }

    /// `EVALSHA`: the server answers NOSCRIPT when it has lost the script, and has then done nothing.
    pub(crate) fn by_digest(&self, keys: &[impl AsRef<[u8]>], argument: &[u8]) -> Cmd {
        self.command("EVALSHA", &self.sha1, keys, &[argument])
    }

    /// `EVAL`: runs the script and makes it known, in one step that a `SCRIPT FLUSH` cannot come between.
    pub(crate) fn in_full(&self, keys: &[impl AsRef<[u8]>], argument: &[u8]) -> Cmd {
        self.command("EVAL", self.text, keys, &[argument])
    }

    /// Either of them, with any number of arguments.
    pub(super) fn with(
        &self,
        is_in_full: bool,
        keys: &[impl AsRef<[u8]>],
        arguments: &[impl AsRef<[u8]>],
    ) -> Cmd {
        if is_in_full {
            self.command("EVAL", self.text, keys, arguments)
        } else {
            self.command("EVALSHA", &self.sha1, keys, arguments)
        }
    }

    fn command(
        &self,
        name: &str,
        script: &str,
        keys: &[impl AsRef<[u8]>],
        arguments: &[impl AsRef<[u8]>],
    ) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        for argument in arguments {
            command.arg(argument.as_ref());
        }
        command
    }
}
