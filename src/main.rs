//! The `rckpt` binary: hands its arguments to the command line room and exits with what that says.

fn main() -> std::process::ExitCode {
    rckpt::cli::run(std::env::args_os())
}
