//! See the library.

use std::{io::Write as _, process::ExitCode};

use zeropod_installer::{
    Error, chain,
    cli::{Args, Command},
    on_host::be_dumped,
    run::run,
};

fn main() -> ExitCode {
    let args = match zeropod_go_flags::parse::<Args>(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => return zeropod_go_flags::report(&error),
    };
    match start(args) {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(std::io::stderr().lock(), "zeropod-installer: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> Result<ExitCode, Error> {
    if let Some(Command::CriuTarget { pid_file }) = &args.command {
        // Without the descriptors of a runtime.
        return be_dumped(pid_file).map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::Io {
        action: "start",
        path: "the async runtime".into(),
        source,
    })?;
    runtime.block_on(run(args))
}
