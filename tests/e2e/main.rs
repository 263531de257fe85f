//! The whole system as real processes: gateway, agent, vault and commands, killed, cut off, damaged and restored.
//!
//! Each test is named after what it proves. Two run at a time ([`common::turn`]).

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod alone;
mod backpressure;
mod bandwidth;
mod clients;
mod commands;
mod damage;
mod disks;
mod doctor;
mod drill;
mod encrypted;
mod export;
mod guest;
mod hostile;
mod image;
mod kills;
mod memory;
mod mount;
mod namespaces;
mod network;
mod observe;
mod outage;
mod page;
mod pauses;
mod quickstart;
mod recipients;
mod refusals;
mod reload;
mod restores;
mod retention;
mod rotation;
mod several;
mod shred;
mod signed;
mod soak;
mod stolen;
mod store;
mod supervised;
mod surroundings;
mod top;
mod traces;
mod trial;
mod turns;
