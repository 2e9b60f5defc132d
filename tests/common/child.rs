//! A test that is run once more, as a process of its own.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    process::{ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The child: takes lines, and answers by lines that begin with `child: `. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    requests: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

impl Child {
    /// Runs the test of this name, with a variable by which it knows that it is the child.
    pub(crate) fn start(test: &str, variable: &str, value: impl AsRef<OsStr>) -> Self {
        let mut process = Command::new(env::current_exe().expect("the path of this test"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(variable, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the test as a process of its own");
        let requests = process.stdin.take().expect("a piped input");
        let output = BufReader::new(process.stdout.take().expect("a piped output"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The runner of the child writes lines of its own.
                if let Some(line) = line.split("child: ").nth(1)
                    && sender.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self {
            process,
            requests,
            lines,
        }
    }

    pub(crate) fn send(&mut self, line: &str) {
        writeln!(self.requests, "{line}").expect("a child that reads");
    }

    pub(crate) fn line(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.expect("a line of the child")
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.line()
    }

    /// Ends it by SIGKILL, after which nothing of it runs any more; answers what it said before.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.end();
        self.lines.iter().collect()
    }

    fn end(&mut self) {
        // One that has ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
