//! Command lines in the style of Go's `flag` package for clap: [`parse`] in
//! place of `Parser::try_parse_from`, and value parsers for what Go writes
//! differently.
//!
//! Where Go would stop at the first argument that is not a flag, so does this;
//! but such an argument may be a subcommand, which Go does not know.

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    process::ExitCode,
};

use clap::{ArgAction, Command, Parser};

mod value;

pub use value::{InvalidValue, boolean, duration, format_duration};

/// Exit code of a command line that is wrong: `EX_USAGE` of `sysexits.h`.
pub const USAGE_EXIT_CODE: u8 = 64;

/// Parses a command line, its first element being the program's name.
///
/// A `bool` field of `P` takes no value or one after `=`, any other flag one
/// after `=` or in the next argument, whatever that starts with.
///
/// # Errors
/// As clap: a mistake, or a call for help. [`report`] deals with both.
pub fn parse<P: Parser>(
    args: impl IntoIterator<Item = impl Into<OsString>>,
) -> Result<P, clap::Error> {
    let mut command = go_style(P::command());
    let args = rewrite(args.into_iter().map(Into::into), &command);
    let mut matches = command.try_get_matches_from_mut(args)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Prints what [`parse`] returned in place of arguments, and returns what the
/// program has to exit with: 0 after help, else [`USAGE_EXIT_CODE`].
pub fn report(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    // Nobody is left to tell when the terminal is gone.
    if error.use_stderr() {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        ExitCode::from(USAGE_EXIT_CODE)
    } else {
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
        ExitCode::SUCCESS
    }
}

/// Rewrites a Go command line into one that clap understands: `-flag` becomes
/// `--flag`, and a value in the argument after its flag is joined by `=`, so
/// that it may start with `-`. Flags and subcommands are looked up in
/// `command`; what it does not know stays for clap to complain about.
pub fn rewrite(args: impl IntoIterator<Item = OsString>, command: &Command) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut rewritten: Vec<OsString> = args.next().into_iter().collect();
    let mut command = command;
    while let Some(arg) = args.next() {
        let Some(flag) = Flag::split(&arg) else {
            let subcommand = arg.to_str().and_then(|name| command.find_subcommand(name));
            rewritten.push(arg);
            match subcommand {
                Some(subcommand) => command = subcommand,
                None => break,
            }
            continue;
        };
        let mut long = OsString::from("--");
        long.push(if flag.name == "h" { OsStr::new("help") } else { flag.name });
        if let Some(value) = flag.value {
            long.push("=");
            long.push(value);
        } else if takes_value(command, flag.name)
            && let Some(value) = args.next()
        {
            long.push("=");
            long.push(value);
        }
        rewritten.push(long);
    }
    rewritten.extend(args);
    rewritten
}

/// Makes the boolean flags of a clap command take a value after `=`, and the
/// last of two equal flags win.
fn go_style(command: Command) -> Command {
    command
        .args_override_self(true)
        .mut_args(|arg| {
            if !matches!(arg.get_action(), ArgAction::SetTrue) {
                return arg;
            }
            let no_default = arg.get_default_values().is_empty();
            let arg = arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_name("BOOL")
                .value_parser(boolean);
            if no_default { arg.default_value("false") } else { arg }
        })
        .mut_subcommands(go_style)
}

fn takes_value(command: &Command, name: &OsStr) -> bool {
    command
        .get_arguments()
        .filter(|arg| arg.get_long().is_some_and(|long| name == long))
        .any(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
}

struct Flag<'a> {
    name: &'a OsStr,
    value: Option<OsString>,
}

impl<'a> Flag<'a> {
    /// `None` for what ends the flags: `-`, `--` and anything without a dash.
    fn split(arg: &'a OsStr) -> Option<Self> {
        let bytes = arg.as_bytes();
        let bare = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-"))?;
        if bare.is_empty() {
            return None;
        }
        Some(match bare.iter().position(|byte| *byte == b'=') {
            Some(at) => Self {
                name: OsStr::from_bytes(&bare[..at]),
                value: Some(OsString::from_vec(bare[at + 1..].to_vec())),
            },
            None => Self { name: OsStr::from_bytes(bare), value: None },
        })
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    #[derive(Debug, PartialEq, Parser)]
    #[command(disable_version_flag = true)]
    struct Args {
        #[arg(long)]
        debug: bool,
        #[arg(long, default_value_t = true)]
        ignore_localhost: bool,
        #[arg(long, default_value = ":8080")]
        addr: String,
        #[arg(long, value_parser = duration, default_value = "1m")]
        timeout: Duration,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(Debug, PartialEq, clap::Subcommand)]
    enum Sub {
        Doctor {
            #[arg(long = "o", default_value = "table")]
            output: String,
        },
    }

    fn defaults() -> Args {
        Args {
            debug: false,
            ignore_localhost: true,
            addr: ":8080".into(),
            timeout: Duration::from_mins(1),
            command: None,
        }
    }

    fn run(args: &[&str]) -> Result<Args, ErrorKind> {
        parse(["prog"].iter().chain(args).copied()).map_err(|error| error.kind())
    }

    #[test]
    fn go_command_lines_mean_what_they_mean_in_go() {
        let debug = || Args { debug: true, ..defaults() };
        let addr = |addr: &str| Args { addr: addr.into(), ..defaults() };
        for (args, expected) in [
            (&[][..], defaults()),
            (&["-debug"], debug()),
            (&["--debug"], debug()),
            (&["-debug=true"], debug()),
            (&["--debug=T"], debug()),
            (&["-debug=1"], debug()),
            (&["-debug=false"], defaults()),
            (&["-debug", "-debug=f"], defaults()),
            (&["-ignore-localhost=0"], Args { ignore_localhost: false, ..defaults() }),
            (&["-ignore-localhost"], defaults()),
            (&["-addr", ":1"], addr(":1")),
            (&["--addr=:1"], addr(":1")),
            (&["-addr="], addr("")),
            (&["-addr=a=b"], addr("a=b")),
            (&["-addr", ":1", "-addr", ":2"], addr(":2")),
            // Go takes the next argument whatever it looks like.
            (&["-addr", "-debug"], addr("-debug")),
            (&["-addr", "--", "-debug"], Args { addr: "--".into(), ..debug() }),
            (
                &["-timeout", "1h2m3.5s"],
                Args { timeout: Duration::from_millis(3_723_500), ..defaults() },
            ),
            (
                &["-debug", "doctor", "-o", "json"],
                Args { command: Some(Sub::Doctor { output: "json".into() }), ..debug() },
            ),
        ] {
            assert_eq!(run(args), Ok(expected), "{args:?}");
        }
    }

    #[test]
    fn mistakes_are_mistakes_in_go_too() {
        for (args, expected) in [
            (&["-nope"][..], ErrorKind::UnknownArgument),
            (&["---debug"], ErrorKind::UnknownArgument),
            (&["-=x"], ErrorKind::UnknownArgument),
            (&["-d"], ErrorKind::UnknownArgument),
            (&["-debug=maybe"], ErrorKind::ValueValidation),
            (&["-timeout=1 day"], ErrorKind::ValueValidation),
            (&["-h"], ErrorKind::DisplayHelp),
            (&["-help"], ErrorKind::DisplayHelp),
        ] {
            assert_eq!(run(args), Err(expected), "{args:?}");
        }
        // A value after a blank is no value of a boolean flag.
        run(&["-debug", "true"]).unwrap_err();
        run(&["-addr"]).unwrap_err();
    }

    #[test]
    fn arguments_need_not_be_text() {
        let command = go_style(Args::command());
        let raw = OsString::from_vec(b"-addr=\xff".to_vec());
        let rewritten = rewrite([OsString::from("prog"), raw], &command);
        assert_eq!(rewritten[1].as_bytes(), b"--addr=\xff");
    }
}
