//! Taking a checkpoint: freeze, collect, snapshot, thaw, write. One collector file per kind of state.
//!
//! It fills [`crate::model::job::Job`] and hands page data to [`crate::image`]; it knows nothing of
//! how either is brought back.
