//! The node-local directory that may belong to a job's directory (`--local`): a second one of the same
//! kind, on a fast disk that only one machine has, where checkpoints are written first.
//!
//! ```text
//! DIR/local.json     where it is, and a name drawn for the two together
//! LOCAL/home.json    where the job's directory is, and the same name
//! ```
//!
//! Only while both have the same name do they belong together. A start somewhere else draws another
//! name or forgets the old one, and so what an earlier start left on another machine, and what went on
//! elsewhere without it, is never taken for the newest. Checkpoints are numbered in both together.

use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::JobDirectory;
use super::error::DirectoryError;
use super::generation::Generation;
use super::identity::{self, Identity};
use crate::image::format::GenerationId;
use crate::image::reader::Trust;
use crate::job::record;
use crate::model::code::{self, Code};

/// In a job's directory: the local one.
pub(super) const LOCAL_FILE: &str = "local.json";
/// In the local one: the job's directory.
pub(super) const HOME_FILE: &str = "home.json";
const FORMAT: u32 = 1;

/// The other one of two directories that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tie {
    format: u32,
    /// The machine where it was last used, for messages.
    pub host: String,
    /// Where it is, absolute.
    pub path: PathBuf,
    /// The name of the two.
    name: String,
}

/// Why a directory cannot be the local one.
#[derive(Debug, Error)]
pub enum TierError {
    /// It is the job's directory itself.
    #[error("{} is the job's directory itself", path.display())]
    Same {
        /// The directory.
        path: PathBuf,
    },
    /// One of the two cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl TierError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Same { .. } => code::requests::LOCAL_IS_HOME,
            Self::Directory(error) => error.code(),
        }
    }
}

impl TierError {
    /// Whether the user should name another directory.
    #[must_use]
    pub const fn is_misuse(&self) -> bool {
        matches!(self, Self::Same { .. } | Self::Directory(DirectoryError::AnotherJob { .. }))
    }
}

impl JobDirectory {
    /// What is recorded of the local directory, wherever that is.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn tie(&self, trust: Trust) -> Result<Option<Tie>, DirectoryError> {
        Ok(record::read(&self.path().join(LOCAL_FILE), trust)?)
    }

    /// The local directory that belongs to this one, if it is here.
    ///
    /// # Errors
    /// When the record of it cannot be read. A local directory that cannot be used is none.
    pub fn local(&self, trust: Trust) -> Result<Option<Self>, DirectoryError> {
        let Some(tie) = self.tie(trust)? else { return Ok(None) };
        let Ok(local) = Self::open(&tie.path, trust) else { return Ok(None) };
        let back = record::read::<Tie>(&local.path().join(HOME_FILE), trust);
        let is_it = back.is_ok_and(|back| back.is_some_and(|back| back.name == tie.name));
        Ok((is_it && self.is_of_the_same_job(&local)).then_some(local))
    }

    /// The job's directory that this one is the local one of; `None`: it is none, or that is not here.
    ///
    /// # Errors
    /// When what is recorded here cannot be read.
    pub fn home(&self, trust: Trust) -> Result<Option<Self>, DirectoryError> {
        let Some(tie) = record::read::<Tie>(&self.path().join(HOME_FILE), trust)? else {
            return Ok(None);
        };
        let Ok(home) = Self::open(&tie.path, trust) else { return Ok(None) };
        let there = home.tie(trust).is_ok_and(|there| there.is_some_and(|it| it.name == tie.name));
        Ok((there && self.is_of_the_same_job(&home)).then_some(home))
    }

    /// The complete generations of both directories, oldest first. Of two with the same number, which are
    /// the same, the one that is quicker to read comes last.
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub fn all_generations(&self, trust: Trust) -> Result<Vec<Generation>, DirectoryError> {
        let mut all = self.generations()?;
        if let Some(local) = self.local(trust)? {
            all.extend(local.generations()?);
        }
        // A stable sort: the local ones stay behind.
        all.sort_by_key(|generation| generation.number);
        Ok(all)
    }

    /// The newest complete generation of both directories, or the one that `latest` names if there is no
    /// newer one in the local directory.
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub fn latest_of_all(&self, trust: Trust) -> Result<Option<Generation>, DirectoryError> {
        let own = self.latest()?;
        let local = match self.local(trust)? {
            Some(local) => local.latest()?,
            None => None,
        };
        let number =
            |generation: &Option<Generation>| generation.as_ref().map_or(0, |it| it.number);
        Ok(if number(&local) >= number(&own) { local.or(own) } else { own })
    }

    /// Takes `wanted` as the local directory from now on; for `None` the one that belongs to it already,
    /// if it is here. This directory must be the caller's to write to.
    ///
    /// # Errors
    /// When `wanted` cannot be used, or is another job's. There is no local directory then.
    pub fn settle(
        &self,
        wanted: Option<&Path>,
        identity: &Identity,
    ) -> Result<Option<Self>, TierError> {
        let current = self.local(Trust::Own)?;
        let local = match wanted {
            None => current,
            Some(wanted) => {
                let is_it =
                    |local: &Self| wanted.canonicalize().is_ok_and(|wanted| wanted == local.path());
                match current.filter(is_it) {
                    Some(local) => Some(local),
                    None => Some(self.join(wanted, identity)?),
                }
            }
        };
        if local.is_none() {
            record::remove(&self.path().join(LOCAL_FILE)).map_err(DirectoryError::from)?;
        }
        Ok(local)
    }

    /// Makes `path` the local directory, an empty one. What is there from an earlier start of this job, or
    /// of an earlier job in this directory, is removed.
    fn join(&self, path: &Path, identity: &Identity) -> Result<Self, TierError> {
        // Whatever comes of it, the one before is not the local one any more.
        record::remove(&self.path().join(LOCAL_FILE)).map_err(DirectoryError::from)?;
        if path.canonicalize().is_ok_and(|path| path == self.path()) {
            return Err(TierError::Same { path: path.to_owned() });
        }
        if let Some(earlier) = self.earlier(path) {
            for generation in earlier.generations()? {
                earlier.remove(&generation)?;
            }
            identity::write(earlier.path(), identity)?;
        }
        let local = Self::create(path, identity)?;
        let host = uname().map_or_else(
            |_| String::new(),
            |names| names.nodename().to_string_lossy().into_owned(),
        );
        let name = GenerationId::random().to_string();
        let tie = |path: &Path| Tie {
            format: FORMAT,
            host: host.clone(),
            path: path.to_owned(),
            name: name.clone(),
        };
        // Until both are written they do not belong together, and nothing is in the local one yet.
        let home_file = local.path().join(HOME_FILE);
        record::write(&home_file, &tie(self.path())).map_err(DirectoryError::from)?;
        let local_file = self.path().join(LOCAL_FILE);
        record::write(&local_file, &tie(local.path())).map_err(DirectoryError::from)?;
        Ok(local)
    }

    /// What is at `path`, if it was once the local directory of this one.
    fn earlier(&self, path: &Path) -> Option<Self> {
        let local = Self::open(path, Trust::Own).ok()?;
        let back = record::read::<Tie>(&local.path().join(HOME_FILE), Trust::Own).ok()??;
        (back.path == self.path()).then_some(local)
    }

    fn is_of_the_same_job(&self, other: &Self) -> bool {
        let id = |directory: &Self| directory.identity().map(|identity| identity.id.clone());
        id(self).is_some() && id(self) == id(other)
    }
}
