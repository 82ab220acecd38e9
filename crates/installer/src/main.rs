//! See the library.

use std::{io::Write as _, process::ExitCode};

use zeropod_installer::{chain, cli::Args, run::run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = match zeropod_go_flags::parse::<Args>(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => return zeropod_go_flags::report(&error),
    };
    match run(args).await {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(std::io::stderr().lock(), "zeropod-installer: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
