//! What else the program does than being the daemon: it asks and changes one
//! that runs, from within its pod.

use std::{
    error::Error,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::{Subcommand, ValueEnum};
use zeropod_status_api::{Client, Output, print_status, watch_status};

use crate::{
    args::{CONTROL_SOCKET, STATUS_ADDR},
    control,
    logging::LogLevel,
};

/// What to do in place of being the daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what the zeropod containers of this node are doing.
    Status {
        /// What to print.
        #[arg(long = "o", alias = "output", value_name = "FORMAT", default_value = "table")]
        output: Format,

        /// Go on, with a line for each change.
        #[arg(long)]
        watch: bool,

        /// The daemon's -status-addr.
        #[arg(long, value_name = "ADDR", default_value = STATUS_ADDR)]
        addr: SocketAddr,
    },
    /// Change the log level of the daemon until it ends, or print it.
    LogLevel {
        /// The new level.
        level: Option<LogLevel>,

        /// The daemon's -control-socket.
        #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
        socket: PathBuf,
    },
}

/// Forms of the status.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// The columns that matter most.
    Table,
    /// All columns.
    Wide,
    /// As the API has it; while watching, one message a line.
    Json,
}

/// Does it, and says what went wrong on standard error.
pub(crate) async fn run(command: Command) -> ExitCode {
    let done: Result<(), Box<dyn Error>> = match command {
        Command::Status { output, watch, addr } => status(output, watch, addr).await,
        Command::LogLevel { level, socket } => log_level(level, socket).await,
    };
    let Err(failure) = done else { return ExitCode::SUCCESS };
    let causes = std::iter::successors(Some(&*failure as &dyn Error), |&error| error.source());
    let chain: Vec<_> = causes.map(ToString::to_string).collect();
    // Nobody is left to tell when the terminal is gone.
    let _ = writeln!(io::stderr(), "zeropod-manager: {}", chain.join(": "));
    ExitCode::FAILURE
}

async fn status(format: Format, watch: bool, addr: SocketAddr) -> Result<(), Box<dyn Error>> {
    let output = match format {
        Format::Table => Output::Table,
        Format::Wide => Output::Wide,
        Format::Json => Output::Json,
    };
    let (client, mut to) = (Client::new(addr), io::stdout());
    if watch {
        watch_status(&client, output, &mut to).await?;
    } else {
        print_status(&client, output, &mut to).await?;
    }
    Ok(())
}

async fn log_level(level: Option<LogLevel>, socket: PathBuf) -> Result<(), Box<dyn Error>> {
    let now = control::log_level(&socket, level).await?;
    writeln!(io::stdout(), "{now}")?;
    Ok(())
}
