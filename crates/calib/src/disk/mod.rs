//! What a run keeps on disk: finished shards and how to go on from them; hidden states that memory has no room for.

pub(crate) mod identity;
pub(crate) mod journal;
pub(crate) mod names;
pub(crate) mod output;
pub(crate) mod stages;
pub(crate) mod states;
