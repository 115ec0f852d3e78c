//! What a check finds: a line for each thing, with a grade and what can be done about it.

use serde::Serialize;

use crate::model::code::Code;

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// It works.
    Works,
    /// rckpt works with less: slower, or not for every job.
    Less,
    /// rckpt does not work.
    Fails,
}

/// What can be done about something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// The user can do it.
    Do(String),
    /// The administrator can; these are the words to send.
    AskAdministrator(String),
}

impl Remedy {
    /// Something for the user.
    pub fn own(words: impl Into<String>) -> Self {
        Self::Do(words.into())
    }

    /// Something for the administrator.
    pub fn ask(words: impl Into<String>) -> Self {
        Self::AskAdministrator(words.into())
    }

    /// The words.
    pub fn words(&self) -> &str {
        match self {
            Self::Do(words) | Self::AskAdministrator(words) => words,
        }
    }
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it is about.
    pub subject: String,
    /// How good it is.
    pub grade: Grade,
    /// What was seen, and what follows from it.
    pub finding: String,
    /// What it is in the catalogue, for what keeps a job from being saved.
    pub code: Option<Code>,
    /// What somebody can do about it.
    pub remedy: Option<Remedy>,
}

impl Line {
    /// Something that works.
    pub fn works(subject: impl Into<String>, finding: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            grade: Grade::Works,
            finding: finding.into(),
            code: None,
            remedy: None,
        }
    }

    /// Something that works with less.
    pub fn less(subject: impl Into<String>, finding: impl Into<String>, remedy: Remedy) -> Self {
        Self { grade: Grade::Less, remedy: Some(remedy), ..Self::works(subject, finding) }
    }

    /// Something that does not work.
    pub fn fails(subject: impl Into<String>, finding: impl Into<String>, remedy: Remedy) -> Self {
        Self { grade: Grade::Fails, remedy: Some(remedy), ..Self::works(subject, finding) }
    }

    /// The same, with its place in the catalogue.
    #[must_use]
    pub fn code(self, code: Code) -> Self {
        Self { code: Some(code), ..self }
    }
}
