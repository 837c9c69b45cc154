//! `crdiff completions` and `crdiff man`: shell completions and manual pages, made from the options themselves.

use std::{collections::BTreeMap, io::Write, path::PathBuf};

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, DONE, Failure, compile};
use crate::onnx::{OnnxError, Pending, Taken, place};

/// Print the completions of a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  crdiff completions bash > ~/.local/share/bash-completion/completions/crdiff
  crdiff completions zsh > ~/.zfunc/_crdiff
  crdiff completions fish > ~/.config/fish/completions/crdiff.fish
  crdiff completions bash --of crdiff-compile > ~/.local/share/bash-completion/completions/crdiff-compile")]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
    /// The program to complete.
    #[arg(long, value_enum, default_value_t = Program::Crdiff)]
    of: Program,
}

/// Write the manual pages: one a subcommand.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  crdiff man -o ~/.local/share/man/man1       then: man crdiff, man crdiff-run, man crdiff-compile")]
pub struct ManArgs {
    /// The folder to write them to; made if it is not there.
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
}

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    /// All subcommands.
    Crdiff,
    /// The compiler by itself.
    CrdiffCompile,
}

impl Program {
    fn command(self) -> clap::Command {
        match self {
            Self::Crdiff => Cli::command(),
            Self::CrdiffCompile => compile::Standalone::command(),
        }
    }
}

/// Runs `crdiff completions`.
///
/// # Errors
/// [`Failure::Message`] if standard output takes nothing.
pub fn completions(args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut command = args.of.command();
    let name = command.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    std::io::stdout().write_all(&script).map_err(|e| Failure::unwritten(&e))?;
    Ok(DONE)
}

/// Runs `crdiff man`. All pages appear or none.
///
/// # Errors
/// [`Failure`] if the folder cannot be made, or a page in it not be written.
pub fn man(args: &ManArgs) -> Result<u8, Failure> {
    // `crdiff-compile` is the page of `crdiff compile` too: the two take the same options.
    let mut pages = BTreeMap::new();
    for program in [Program::Crdiff, Program::CrdiffCompile] {
        let mut command = program.command().disable_help_subcommand(true);
        command.build();
        add_pages(&command, &mut pages);
    }
    let (mut taken, mut written) = (Taken::default(), Vec::new());
    for (name, page) in pages {
        let path = args.output.join(name);
        let pending = Pending::create(&path, &mut taken)?;
        let mut text = Vec::new();
        let done = page.render(&mut text).and_then(|()| (&pending.file).write_all(&text));
        done.map_err(|e| OnnxError::io("write", &path, e))?;
        written.push((Vec::new(), pending));
    }
    place(written)?;
    Ok(DONE)
}

/// Adds the page of a command, and those of its subcommands, by the names of their files.
fn add_pages(command: &clap::Command, pages: &mut BTreeMap<String, Man>) {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        add_pages(subcommand, pages);
    }
    let page = Man::new(command.clone());
    pages.insert(page.get_filename(), page);
}
