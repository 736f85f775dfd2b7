//! The words of options whose values are those of an enum below the command line, and their help.

use clap::builder::PossibleValue;

use crate::operate::report::Kind;
use crate::operate::roles::Role;
use crate::plan::recovery::Action;
use crate::repo::root::cluster::Method;
use crate::snapshot::frame::FrameCodec;
use crate::store::s3::class::Speed;
use crate::wire::basebackup::StartCheckpoint;

macro_rules! words {
    ($($type:ty { $($value:expr => $word:literal, $help:literal;)* })*) => {$(
        impl clap::ValueEnum for $type {
            fn value_variants<'a>() -> &'a [$type] {
                &[$($value),*]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                let words = [$(($value, $word, $help)),*];
                let (_, word, help) = words.into_iter().find(|(value, ..)| value == self)?;
                Some(PossibleValue::new(word).help(help))
            }
        }
    )*};
}

words! {
    Method {
        Method::Stream => "stream", "Over the replication protocol";
        Method::Local => "local", "From the data directory, on the database's own host";
    }
    StartCheckpoint {
        StartCheckpoint::Fast => "fast", "An immediate checkpoint";
        StartCheckpoint::Spread => "spread", "A checkpoint spread over checkpoint_completion_target";
    }
    FrameCodec {
        FrameCodec::Lz4 => "lz4", "Fast";
        FrameCodec::Zstd(1) => "zstd", "Small";
    }
    Action {
        Action::Promote => "promote", "Accept writes";
        Action::Pause => "pause", "Accept reads, and wait for pg_wal_replay_resume()";
        Action::Shutdown => "shutdown", "Stop";
    }
    Speed {
        Speed::Expedited => "expedited", "Minutes; not from DEEP_ARCHIVE";
        Speed::Standard => "standard", "Hours";
        Speed::Bulk => "bulk", "Half a day; from DEEP_ARCHIVE two days";
    }
    Kind {
        Kind::Daily => "daily", "Runs, backups, drills, and findings with what helps";
        Kind::Audit => "audit", "Every run, and whether the audit log is whole";
        Kind::Compliance => "compliance", "The state of each control";
    }
    Role {
        Role::Reader => "reader", "Restores, drills and looks";
        Role::Writer => "writer", "Archives and backs up; deletes nothing";
        Role::Janitor => "janitor", "Expires; reads no data";
        Role::Operator => "operator", "Does all but expire";
    }
}
