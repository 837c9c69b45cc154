//! `crdiff completions` and `crdiff man`: shell completions and manual pages, made from the options themselves.

use std::{fs, io::Write, path::PathBuf};

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, DONE, Failure, about, compile};

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

/// Runs `crdiff man`.
///
/// # Errors
/// [`Failure::Message`] if the folder or a page in it cannot be written.
pub fn man(args: &ManArgs) -> Result<u8, Failure> {
    fs::create_dir_all(&args.output).map_err(|e| Failure::Message(about(&args.output, &e)))?;
    // `crdiff-compile` is the page of `crdiff compile` too: the two take the same options.
    for program in [Program::Crdiff, Program::CrdiffCompile] {
        clap_mangen::generate_to(program.command(), &args.output)
            .map_err(|e| Failure::Message(about(&args.output, &e)))?;
    }
    Ok(DONE)
}
