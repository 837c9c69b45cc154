//! The command lines, one file a subcommand. Only this module and `bin/` print or exit.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the part that talks to the terminal")]

/// Prints to standard output; what cannot be written ends the command.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::cli::print(format_args!($($text)*))?
    };
}

#[cfg(feature = "runner")]
pub mod bench;
#[cfg(feature = "runner")]
pub mod cache;
#[cfg(feature = "runner")]
pub mod compare;
pub mod compile;
#[cfg(feature = "runner")]
mod compiled;
pub mod completions;
pub mod diff;
pub mod digest;
#[cfg(feature = "runner")]
pub mod doctor;
#[cfg(feature = "runner")]
mod engine_args;
#[cfg(feature = "runner")]
pub mod export;
mod files;
#[cfg(feature = "runner")]
mod image_file;
pub mod inspect;
mod likeness;
pub mod print;
mod progress;
#[cfg(feature = "runner")]
pub mod run;
#[cfg(feature = "runner")]
pub mod search;
pub mod verify;
mod version;

use std::{ffi::OsString, fmt, io::Write, path::Path};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{compile::CompileError, onnx::OnnxError, plan::PlanError, report::outcome::Format};

/// Exit code: done, or what was asked holds.
pub const DONE: u8 = 0;
/// Exit code: what was asked does not hold.
pub const DOES_NOT_HOLD: u8 = 1;
/// Exit code: the command line or an input is wrong.
pub const BAD_INPUT: u8 = 2;
/// Exit code: interrupted. 128 + SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// CR-Diff for exported ONNX diffusion UNets.
#[derive(Debug, Parser)]
#[command(name = "crdiff", version, long_version = version::long(), max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(compile::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Diff(diff::Args),
    #[cfg(feature = "runner")]
    Compare(compare::Args),
    Digest(digest::Args),
    Print(print::Args),
    #[cfg(feature = "runner")]
    Doctor(doctor::Args),
    #[cfg(feature = "runner")]
    Run(Box<run::Args>),
    #[cfg(feature = "runner")]
    Search(Box<search::Args>),
    #[cfg(feature = "runner")]
    Bench(bench::Args),
    #[cfg(feature = "runner")]
    Cache(cache::Args),
    #[cfg(feature = "runner")]
    Export(Box<export::Args>),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Runs `crdiff` with `arguments`, the program's name first. Returns its exit code.
pub fn crdiff(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let words: Vec<_> = arguments.iter().skip(1).map(|word| word.to_string_lossy()).collect();
    if let Some(model) = words.first().filter(|word| word.ends_with(".onnx")) {
        let what = format!("`{model}` is a model, not a command: crdiff compile {}", words.join(" "));
        return finish(Err(Failure::Message(what)));
    }
    let Cli { command } = Cli::parse_from(arguments);
    finish(match command {
        Command::Compile(args) => compile::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Diff(args) => diff::run(&args),
        #[cfg(feature = "runner")]
        Command::Compare(args) => compare::run(&args),
        Command::Digest(args) => digest::run(&args),
        Command::Print(args) => print::run(&args),
        #[cfg(feature = "runner")]
        Command::Doctor(args) => doctor::run(&args),
        #[cfg(feature = "runner")]
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "runner")]
        Command::Search(args) => search::run(&args),
        #[cfg(feature = "runner")]
        Command::Bench(args) => bench::run(&args),
        #[cfg(feature = "runner")]
        Command::Cache(args) => cache::run(&args),
        #[cfg(feature = "runner")]
        Command::Export(args) => export::run(&args),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    })
}

/// Runs `crdiff-compile` with `arguments`, the program's name first. Returns its exit code.
pub fn crdiff_compile(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let words: Vec<_> = arguments.iter().skip(1).map(|word| word.to_string_lossy()).collect();
    if let Some(command) = words.first().filter(|word| is_command(word) && !Path::new(&***word).exists()) {
        let what = format!("`{command}` is a command of `crdiff`, not a model: crdiff {}", words.join(" "));
        return finish(Err(Failure::Message(what)));
    }
    finish(compile::run(&compile::Standalone::parse_from(arguments).args))
}

/// Returns whether `word` is a subcommand of `crdiff`.
fn is_command(word: &str) -> bool {
    Cli::command().get_subcommands().any(|command| command.get_name() == word)
}

/// The reason for which a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// The plan is wrong; shown with the lines that are.
    Plan(Box<PlanError>),
    /// The space is wrong; shown with the lines that are.
    #[cfg(feature = "runner")]
    Space(Box<crate::search::space::SpaceError>),
    /// Anything else, as one message.
    Message(String),
    /// The user said stop.
    Interrupted,
    /// The user said stop, and what was done is kept; the message says where.
    Paused(String),
}

impl Failure {
    /// Returns the failure of standard output that takes nothing.
    fn unwritten(error: &std::io::Error) -> Self {
        Self::Message(format!("cannot write to standard output: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(error) => error.fmt(f),
            #[cfg(feature = "runner")]
            Self::Space(error) => error.fmt(f),
            Self::Message(message) => f.write_str(message),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Paused(message) => f.write_str(message),
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::Plan(Box::new(error))
    }
}

impl From<OnnxError> for Failure {
    fn from(error: OnnxError) -> Self {
        match error {
            OnnxError::Stopped => Self::Interrupted,
            other => Self::Message(other.to_string()),
        }
    }
}

impl From<CompileError> for Failure {
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::Plan(error) => Self::Plan(error),
            CompileError::Stopped => Self::Interrupted,
            other => Self::Message(other.to_string()),
        }
    }
}

/// The form of the output: for people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TextOrJson {
    /// For people.
    Text,
    /// JSON.
    Json,
}

/// How commands that have no other format are told to print JSON.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Json {
    /// How to print what is printed [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<TextOrJson>,
    /// Short for --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl Json {
    /// Returns whether JSON was asked for.
    pub fn is_asked(self) -> bool {
        self.json || self.format == Some(TextOrJson::Json)
    }
}

/// How commands that check something print what they found.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Formats {
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    /// Short for --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl From<Formats> for Format {
    fn from(formats: Formats) -> Self {
        if formats.json { Self::Json } else { formats.format.into() }
    }
}

/// Says that a size is in latents, where it looks like one in pixels.
fn said_latents(size: Option<Size>) {
    /// Latents of Stable Diffusion have an eighth of the pixels on each side.
    const FACTOR: i64 = 8;
    let Some(Size { height, width }) = size.filter(|size| size.height.min(size.width) >= 256) else { return };
    anstream::eprintln!(
        "note: {height}x{width} are latents here, {}x{} pixels with a VAE of factor {FACTOR}; for {height}x{width} pixels \
         say {}x{}",
        height * FACTOR,
        width * FACTOR,
        height / FACTOR,
        width / FACTOR
    );
}

/// The values of `--format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// JSON.
    Json,
    /// JUnit XML.
    Junit,
    /// SARIF 2.1.0.
    Sarif,
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Text => Self::Text,
            OutputFormat::Json => Self::Json,
            OutputFormat::Junit => Self::Junit,
            OutputFormat::Sarif => Self::Sarif,
        }
    }
}

#[cfg(feature = "runner")]
impl From<crate::diffusion::PipelineError> for Failure {
    fn from(error: crate::diffusion::PipelineError) -> Self {
        match error {
            crate::diffusion::PipelineError::Stopped => Self::Interrupted,
            other => Self::Message(other.to_string()),
        }
    }
}

#[cfg(feature = "runner")]
impl From<crate::search::space::SpaceError> for Failure {
    fn from(error: crate::search::space::SpaceError) -> Self {
        Self::Space(Box::new(error))
    }
}

#[cfg(feature = "runner")]
impl From<crate::search::SearchError> for Failure {
    fn from(error: crate::search::SearchError) -> Self {
        match error {
            crate::search::SearchError::Stopped => Self::Interrupted,
            crate::search::SearchError::Space(error) => error.into(),
            other => Self::Message(other.to_string()),
        }
    }
}

fn print(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let written = out.write_fmt(text).and_then(|()| out.flush());
    written.map_err(|e| Failure::unwritten(&e))
}

/// Returns an error about the model at `path`, which the message names.
fn about(path: &Path, error: &dyn fmt::Display) -> String {
    let message = error.to_string();
    let path = path.display().to_string();
    if message.contains(&path) { message } else { format!("{path}: {message}") }
}

/// Reads a number that float32 holds.
#[cfg(feature = "runner")]
fn number(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| (*x as f32).is_finite());
    number.ok_or_else(|| format!("`{text}` is not a number that float32 holds"))
}

/// Returns how many columns there are to print in: COLUMNS says it, or else the terminal. A file or a pipe has no end.
fn columns() -> Option<u16> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    said.filter(|columns| *columns > 0).or_else(|| {
        let size = terminal_size::terminal_size_of(std::io::stdout())?;
        Some(size.0.0)
    })
}

/// A size as `HEIGHTxWIDTH`, in units of the latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Height.
    pub height: i64,
    /// Width.
    pub width: i64,
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |part: &str| part.parse::<i64>().ok().filter(|n| (1..=1 << 20).contains(n));
        let (height, width) = text.split_once(['x', 'X']).unwrap_or((text, text));
        match (parse(height), parse(width)) {
            (Some(height), Some(width)) => Ok(Self { height, width }),
            _ => Err(format!("`{text}` is not a size: write HEIGHTxWIDTH, such as 64x96")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

/// Says what ended a command early, if anything did. Returns the exit code.
fn finish(result: Result<u8, Failure>) -> u8 {
    let (code, message) = match result {
        Ok(code) => return code,
        Err(Failure::Interrupted) => (INTERRUPTED, "interrupted; nothing was written".to_string()),
        Err(Failure::Paused(message)) => (INTERRUPTED, message),
        Err(Failure::Message(message)) => (BAD_INPUT, format!("error: {message}")),
        Err(Failure::Plan(error)) => (BAD_INPUT, format!("{:?}", miette::Report::new(*error))),
        #[cfg(feature = "runner")]
        Err(Failure::Space(error)) => (BAD_INPUT, format!("{:?}", miette::Report::new(*error))),
    };
    // Nobody is left to report to.
    writeln!(anstream::stderr(), "{message}").ok();
    code
}
