//! The journal: a line of JSON for each trial, written when it ends, from which a killed search goes on.
//!
//! The first line says which search it is, the second what the dense pipeline scores. Confirmations stand behind the
//! trials of which they are the best. There are no times in it: a search that was killed and went on leaves the same
//! journal as one that was not.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::Value;

use super::{SearchError, trial::Scores};

/// The version of the format. 1 identified spaces by what a release printed of them.
pub const FORMAT: u32 = 2;

/// Which search a journal is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub journal: u32,
    /// This program's version.
    pub crdiff: String,
    /// [`Space::digest`](super::Space::digest).
    pub space: String,
    /// [`Compiler::digest`](super::compile::Compiler::digest).
    pub model: String,
    /// The strategy's name.
    pub strategy: String,
    /// Its seed.
    pub seed: u32,
    /// How many images a trial has.
    #[serde(alias = "pictures")]
    pub images: usize,
}

/// The score of the dense pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dense {
    /// It.
    pub dense: Scores,
}

/// A trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 0.
    pub trial: u64,
    /// The value of each variable.
    pub values: Value,
    /// Its result.
    #[serde(flatten)]
    pub scores: Scores,
    /// The earlier trial with the same values, whose scores these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<u64>,
    /// Seconds since the trial before it ended, or the search was started; only kept where the budget is a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// The network that a confirmation is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The dense network.
    Dense,
    /// The plan of the trial with this number.
    Trial(u64),
}

/// The scores of images from noises that no trial began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The network that drew them.
    pub confirmed: Subject,
    /// How many noises each prompt had. Those of another number are others.
    pub noises: usize,
    /// Its result.
    #[serde(flatten)]
    pub scores: Scores,
}

/// An open journal, locked.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

/// The contents of a journal.
#[derive(Debug, Default)]
pub struct Kept {
    /// The score of the dense pipeline, once it was known.
    pub dense: Option<Scores>,
    /// The trials that ended.
    pub records: Vec<Record>,
    /// The confirmations, of each number of noises.
    pub confirmations: Vec<Confirmation>,
}

/// The key by which a line is known to be a confirmation.
#[derive(Deserialize)]
struct Kind {
    confirmed: Option<IgnoredAny>,
}

impl Journal {
    /// Opens the journal at `path`, or begins it. A last line that was cut off is removed.
    ///
    /// # Errors
    /// [`SearchError::Journal`] if it is another search's, broken, or in use.
    pub fn open(path: &Path, header: &Header) -> Result<(Self, Kept), SearchError> {
        let io = |action: &'static str| move |e| SearchError::io(action, path, e);
        // Opening a pipe waits for somebody at its other end.
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(SearchError::journal(path, "it is a folder, a pipe or a device; name a file"));
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(SearchError::journal(path, "another search is writing to it"));
            }
            Err(TryLockError::Error(e)) => return Err(SearchError::io("lock", path, e)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read"))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64).map_err(io("cut"))?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(io("read"))?;
        let mut journal = Self { path: path.to_path_buf(), file };
        let text = std::str::from_utf8(bytes.get(..whole).unwrap_or_default())
            .map_err(|_| SearchError::journal(path, "it is not a journal: it is not text"))?;
        let mut lines = text.lines().enumerate();
        let Some((number, first)) = lines.next() else {
            journal.append(header)?;
            return Ok((journal, Kept::default()));
        };
        let known: Header = journal.line(number, first)?;
        if known != *header {
            return Err(SearchError::journal(path, difference(&known, header)));
        }
        let mut kept = Kept::default();
        if let Some((number, line)) = lines.next() {
            kept.dense = Some(journal.line::<Dense>(number, line)?.dense);
        }
        for (number, line) in lines {
            if journal.line::<Kind>(number, line)?.confirmed.is_some() {
                kept.confirmations.push(journal.line(number, line)?);
                continue;
            }
            let record: Record = journal.line(number, line)?;
            if record.trial != kept.records.len() as u64 {
                let what =
                    format!("line {}: trial {} stands at {}", number + 1, record.trial, kept.records.len());
                return Err(SearchError::journal(path, what));
            }
            kept.records.push(record);
        }
        Ok((journal, kept))
    }

    fn line<T: DeserializeOwned>(&self, number: usize, line: &str) -> Result<T, SearchError> {
        serde_json::from_str(line).map_err(|e| {
            let what = format!("line {} is not a journal's: {e}; remove the file to begin again", number + 1);
            SearchError::journal(&self.path, what)
        })
    }

    /// Writes a line, and has the disk keep it.
    ///
    /// # Errors
    /// [`SearchError`] if it cannot be written.
    pub fn append(&mut self, line: &impl Serialize) -> Result<(), SearchError> {
        let mut text = serde_json::to_string(line)
            .map_err(|e| SearchError::journal(&self.path, format!("a line cannot be written: {e}")))?;
        text.push('\n');
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| SearchError::io("write", &self.path, e))
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the settings in which two searches differ.
fn difference(known: &Header, now: &Header) -> String {
    let what = match () {
        () if known.journal != now.journal => format!(
            "it is of format {}, which crdiff {} wrote, and this is crdiff {}, whose format is {}",
            known.journal, known.crdiff, now.crdiff, now.journal
        ),
        () if known.crdiff != now.crdiff => {
            format!("it was written by crdiff {}, this is {}", known.crdiff, now.crdiff)
        }
        () if known.model != now.model => "it is of a search with another model".to_string(),
        () if known.seed != now.seed => format!("its search has the seed {}, not {}", known.seed, now.seed),
        () => {
            "it is of a search with another space: variables, plan, prompts, sampling, objective or strategy \
               have changed"
                .to_string()
        }
    };
    format!("{what}; give another --journal, or --restart to begin this one again")
}
