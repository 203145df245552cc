//! What a run keeps on disk: finished shards with the journal, and hidden states that do not fit into memory.

pub(crate) mod details;
pub(crate) mod identity;
pub(crate) mod journal;
pub(crate) mod names;
pub(crate) mod output;
pub(crate) mod stages;
pub(crate) mod states;
