//! A program that is run for each image.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command as Process, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{Drawn, Objective, Scored, printed_number};
use crate::search::{SearchError, space::CommandSpec};

/// Runs a program and reads the number that it prints.
#[derive(Debug)]
pub(super) struct Command {
    spec: CommandSpec,
    folder: PathBuf,
}

impl Command {
    pub(super) fn new(spec: &CommandSpec, folder: &Path) -> Self {
        Self { spec: spec.clone(), folder: folder.to_path_buf() }
    }
}

impl Objective for Command {
    fn score(&mut self, drawn: &Drawn<'_>) -> Result<Scored, SearchError> {
        let failed = |what: String| SearchError::objective(&self.spec.args.join(" "), what);
        let image = drawn.file()?.display().to_string();
        let filled = |arg: &String| match arg.as_str() {
            // A prompt may have braces of its own.
            "{prompt}" => drawn.prompt.to_string(),
            arg => arg.replace("{image}", &image).replace("{prompt}", drawn.prompt),
        };
        let mut process =
            process(&self.spec.args, &self.folder, filled).ok_or_else(|| failed("no program".into()))?;
        process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().map_err(|e| failed(format!("cannot start: {e}")))?;
        let until = Instant::now() + self.spec.timeout;
        let (printed, said) = (reader(child.stdout.take()), reader(child.stderr.take()));
        let Some(status) = wait(&mut child, &printed, until).map_err(|e| failed(e.to_string()))? else {
            let _ = child.kill();
            let _ = child.wait();
            let seconds = self.spec.timeout.as_secs_f64();
            return Err(failed(format!("no answer after {seconds} s, its `timeout`")));
        };
        let brief = Duration::from_secs(1);
        let printed = printed.text(brief);
        if !status.success() {
            let said = said.text(brief);
            let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            return Err(failed(format!("{status}: {last}")));
        }
        printed_number(&printed).map(Scored::of).map_err(failed)
    }
}

/// Returns the program and arguments of a space, to be run in its folder.
pub(super) fn process(args: &[String], folder: &Path, filled: impl Fn(&String) -> String) -> Option<Process> {
    let (program, args) = args.split_first()?;
    // A path is relative to the folder; a name alone is looked up as shells do.
    let program = match Path::new(program) {
        path if path.is_relative() && path.components().count() > 1 => folder.join(path).into_os_string(),
        path => path.as_os_str().to_owned(),
    };
    let mut process = Process::new(program);
    process.args(args.iter().map(filled)).current_dir(folder);
    Some(process)
}

/// Checks that the program of a space is there.
///
/// # Errors
/// [`SearchError::Objective`] if it is not found.
pub(super) fn find(spec: &CommandSpec, folder: &Path) -> Result<(), SearchError> {
    let name = spec.args.first().map(String::as_str).unwrap_or_default();
    let path = Path::new(name);
    let is_there = match path.components().count() {
        1 if path.is_relative() => {
            let places = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&places).any(|place| place.join(path).is_file())
        }
        _ => folder.join(path).is_file(),
    };
    if is_there {
        return Ok(());
    }
    Err(SearchError::objective(&spec.args.join(" "), format!("there is no program `{name}`")))
}

/// The output of a program, read as it comes so that the program never blocks.
struct Reader(mpsc::Receiver<String>, std::cell::OnceCell<String>);

impl Reader {
    /// Returns whether all has been read within `time`.
    fn is_read(&self, time: Duration) -> bool {
        if self.1.get().is_some() {
            return true;
        }
        match self.0.recv_timeout(time) {
            Ok(text) => self.1.set(text).is_ok(),
            Err(_) => false,
        }
    }

    fn text(&self, time: Duration) -> String {
        self.is_read(time);
        self.1.get().cloned().unwrap_or_default()
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> Reader {
    const MOST: u64 = 1 << 20;
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.by_ref().take(MOST).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
            // Nobody may be listening any more.
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
        });
    }
    Reader(receiver, std::cell::OnceCell::new())
}

/// Waits until the program ends; `None` if it takes too long. A program that has closed its output is about to end.
fn wait(child: &mut Child, printed: &Reader, until: Instant) -> std::io::Result<Option<ExitStatus>> {
    printed.is_read(until.saturating_duration_since(Instant::now()));
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
