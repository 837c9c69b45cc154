//! `crdiff cache`: lists and removes the compiled plans in the user's cache.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{DONE, Failure, Json, about};
use crate::{
    engine::fetch::user_cache,
    plan_cache::{ABOUT, COPY, FOLDER},
    report::text::bytes,
};

const EXAMPLES: &str = "\
Examples:
  crdiff cache                what is kept, and how much room it takes
  crdiff cache clear          forget compiled plans and the copies of weights beside them
  crdiff cache clear --all    and TensorRT's engines and fetched libraries too";

/// List or clear what is kept in the user's cache: compiled plans, engines, libraries.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Remove compiled plans.
    Clear {
        /// Remove everything: engines and fetched libraries too.
        #[arg(long)]
        all: bool,
    },
}

/// A folder in the cache.
struct Entry {
    path: PathBuf,
    /// The model that plans in it were compiled for.
    model: Option<String>,
    /// How many plans.
    plans: usize,
    bytes: u64,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let Some(cache) = user_cache() else {
        return Err(Failure::Message(
            "there is no cache folder: neither XDG_CACHE_HOME nor HOME is set".to_string(),
        ));
    };
    let failed = |e: io::Error| Failure::Message(about(&cache, &e));
    let compiled = folders(&cache.join(FOLDER)).map_err(failed)?;
    let others = folders(&cache).map_err(failed)?.into_iter().filter(|path| !path.ends_with(FOLDER));
    let mut entries = Vec::new();
    for path in compiled.into_iter().chain(others) {
        entries.push(entry(path).map_err(failed)?);
    }
    if let Some(Command::Clear { all }) = &args.command {
        entries.retain(|entry| *all || entry.path.parent().is_some_and(|folder| folder.ends_with(FOLDER)));
        for entry in &entries {
            fs::remove_dir_all(&entry.path).map_err(|e| Failure::Message(about(&entry.path, &e)))?;
        }
    }
    if args.json.is_asked() {
        let list: Vec<Value> = entries.iter().map(Entry::json).collect();
        out!("{}\n", json!({ "folder": cache, "cleared": args.command.is_some(), "entries": list }));
        return Ok(DONE);
    }
    for entry in &entries {
        out!("{:>10}  {}\n", bytes(entry.bytes), entry.line(&cache));
    }
    let total = bytes(entries.iter().map(|entry| entry.bytes).sum());
    match args.command {
        Some(_) => out!("{total} removed from {}\n", cache.display()),
        None => out!("{total} in {}\n", cache.display()),
    }
    Ok(DONE)
}

impl Entry {
    fn line(&self, cache: &Path) -> String {
        let name = self.path.strip_prefix(cache).unwrap_or(&self.path).display();
        match &self.model {
            Some(model) => {
                let plans = if self.plans == 1 { "plan" } else { "plans" };
                format!("{name}  {} {plans} for {model}", self.plans)
            }
            None => name.to_string(),
        }
    }

    fn json(&self) -> Value {
        json!({ "path": self.path, "model": self.model, "plans": self.plans, "bytes": self.bytes })
    }
}

/// Describes the folder at `path`.
fn entry(path: PathBuf) -> io::Result<Entry> {
    let about = fs::read_to_string(path.join(ABOUT)).ok();
    let about = about.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let model = about.and_then(|about| about.get("model")?.as_str().map(str::to_string));
    let mut plans = 0;
    let mut bytes = 0;
    for file in files(&path)? {
        bytes += file.metadata()?.len();
        let is_plan =
            |name: &str| name.ends_with(".onnx") && name != COPY && !name.ends_with(".shallow.onnx");
        let name = file.file_name().and_then(|name| name.to_str());
        plans += usize::from(model.is_some() && name.is_some_and(is_plan));
    }
    Ok(Entry { path, model, plans, bytes })
}

/// Returns the files below a folder; links are not followed.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => open.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// Returns the folders in a folder, sorted; none if it isn't there.
fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
