//! A program that is started once and answers for each image.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
};

use serde_json::json;

use super::{Drawn, Objective, Scored, command::process, printed_number};
use crate::search::{SearchError, space::CommandSpec};

/// Writes a line for each image to a running program, and reads a number a line.
#[derive(Debug)]
pub(super) struct Serve {
    spec: CommandSpec,
    folder: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Serve {
    pub(super) fn new(spec: &CommandSpec, folder: &Path) -> Self {
        Self { spec: spec.clone(), folder: folder.to_path_buf(), running: None }
    }

    fn start(&self) -> Result<Running, String> {
        let mut process = process(&self.spec.args, &self.folder, String::clone).ok_or("no program")?;
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = process.spawn().map_err(|e| format!("cannot start: {e}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("cannot start: it has no input or output".to_string());
        };
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if !line.trim().is_empty() && sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Running { child, input, lines })
    }

    fn ask(&mut self, line: &str) -> Result<f64, String> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let ended = |running: &mut Running| match running.child.wait() {
            Ok(status) => format!("it ended with {status}; it must answer each line with a number"),
            Err(e) => format!("it ended: {e}"),
        };
        if writeln!(running.input, "{line}").and_then(|()| running.input.flush()).is_err() {
            return Err(ended(&mut running));
        }
        match running.lines.recv_timeout(self.spec.timeout) {
            Ok(answer) => {
                let number = printed_number(&answer);
                self.running = Some(running);
                number
            }
            Err(RecvTimeoutError::Disconnected) => Err(ended(&mut running)),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("no answer after {} s, its `timeout`", self.spec.timeout.as_secs_f64()))
            }
        }
    }
}

impl Objective for Serve {
    fn score(&mut self, drawn: &Drawn<'_>) -> Result<Scored, SearchError> {
        let line = json!({ "image": drawn.file()?, "prompt": drawn.prompt }).to_string();
        let name = self.spec.args.join(" ");
        self.ask(&line).map(Scored::of).map_err(|what| SearchError::objective(&name, what))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
