//! Integration tests, in one binary: every module below drives the real programs against real servers.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the rules for what is shipped; tests print, move files and ask the clock"
)]

mod common;

mod absence;
mod agent;
mod agent_claims;
mod agent_week;
mod alert;
mod alert_conditions;
mod archive;
mod archive_faults;
mod audit;
mod backup;
mod backup_faults;
mod backup_local;
mod backup_soak;
mod blob;
mod blob_cycle;
mod cli_bad_input;
mod cli_repo;
mod clock;
mod clone;
mod clone_faults;
mod config;
mod content;
mod corruption;
mod cost;
mod demo;
mod doctor;
mod drain;
mod drain_s3;
mod drill;
mod drill_soak;
mod epochs;
mod estimates;
mod expire;
mod fetch;
mod files;
mod find;
mod frozen;
mod frozen_content;
mod golden;
mod harness;
mod heal;
mod hold;
mod incremental;
mod init;
mod init_interactive;
mod key_command;
mod key_wrapping;
mod limits;
mod lives;
mod logical;
mod medium;
mod metrics;
mod newer;
mod oracle;
mod page;
mod patroni;
mod pgfiles;
mod pin;
mod plan;
mod plan_scale;
mod prefetch;
mod promises;
mod promotion;
mod proof;
mod receive;
mod receive_journal;
mod receive_network;
mod recipients;
mod recovering;
mod redis;
mod resolve;
mod restore;
mod restore_databases;
mod restore_delta;
mod restore_faults;
mod restore_hostile;
mod restore_replace;
mod restore_start;
mod restore_unlogged;
mod retention;
mod s3;
mod s3_content;
mod s3_cycle;
mod s3_faults;
mod s3_hard;
mod s3_slow;
mod s3_tiers;
mod sealed;
mod sealed_events;
mod sealed_wal;
mod secrets;
mod sets;
mod several;
mod several_plans;
mod sftp;
mod sftp_cycle;
mod shares;
mod ship;
mod sizing;
mod soak;
mod streaming;
mod tails;
mod takeover;
mod tenants;
mod timeline;
mod turns;
mod verify;
mod verify_damage;
mod verify_depth;
mod wal_by_hand;
mod wal_decode;
mod wire;
