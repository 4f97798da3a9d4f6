//! `vademecum backup` and `vademecum restore`: the library as one file, and back.

use super::{Common, Failure, Outcome, print_json, print_line, runtime};
use crate::assemble::ServiceError;
use crate::config::Config;
use http::Client;
use library::store::backup::{self, Backup};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file to write, for example library.tar.gz
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// A file that `vademecum backup` has written
    file: PathBuf,
    /// Replace a library that has documents
    #[arg(long)]
    force: bool,
}

/// Writes the file under another name, verifies it, and only then gives it its name.
pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    // The backup replaces the file of that name, which would remove a device or a pipe.
    if fs::metadata(&args.file).is_ok_and(|there| !there.is_file()) {
        return Err(Failure::Other(format!(
            "{} exists and is not a regular file; name a new file or an older backup",
            args.file.display()
        )));
    }
    let mut unfinished = args.file.clone().into_os_string();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let written = write(config, &unfinished).and_then(|()| {
        let held = backup::verify(&unfinished).map_err(ServiceError::from)?;
        fs::rename(&unfinished, &args.file).map_err(|e| cannot_write(&args.file, &e))?;
        Ok(held)
    });
    let held = written.inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
    tell(common, &held, &format!("written to {}", args.file.display()))
}

fn cannot_write(file: &Path, error: &std::io::Error) -> Failure {
    Failure::Other(format!("cannot write {}: {error}; check the path and its free space", file.display()))
}

/// Writes the backup through the daemon that holds the library, or from the library itself.
fn write(config: &Config, path: &Path) -> Result<(), Failure> {
    let failed = |e: std::io::Error| cannot_write(path, &e);
    let mut file = File::create(path).map_err(failed)?;
    let over_socket = runtime()?.block_on(async {
        let Some(mut client) = Client::connect(&config.control_socket()).await? else { return Ok::<_, Failure>(false) };
        client.download("backup", &mut file).await?;
        Ok(true)
    })?;
    if !over_socket {
        super::need_library(config)?;
        let store = crate::assemble::open_store(config)?;
        let snapshot = store.snapshot().map_err(ServiceError::from)?;
        snapshot.write(BufWriter::new(&file)).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

pub(super) fn restore(config: &Config, common: &Common, args: &RestoreArgs) -> Outcome {
    let held = backup::restore(&args.file, &config.data_dir(), args.force).map_err(ServiceError::from)?;
    tell(common, &held, "restored; the next command or the daemon embeds them again, and the daemon answers meanwhile")
}

fn tell(common: &Common, held: &Backup, what: &str) -> Outcome {
    if common.json {
        print_json(held)?;
    } else {
        print_line(&format!("{} documents, {} bytes: {what}", held.documents, held.bytes));
    }
    Ok(ExitCode::SUCCESS)
}
