//! The crate's script called by hand, as another client would: one call in it, packed once.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Instant,
};

use super::common::redis::RedisServer;

const DECIDE: &str = include_str!("../../src/limit/redis_store/decide.lua");
/// A bucket as most limiters have it: the time at which it is empty, and nothing else.
const GCRA: &str = "
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = tonumber(redis.call('GET', KEYS[1]) or now)
if full_at < now then full_at = now end
if full_at + interval - now > burst then return {1, full_at + interval - burst - now} end
full_at = full_at + interval
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
return {0, 0}";

/// A number of four bytes, none of which is zero: redis-benchmark ends an argument at one.
const LARGE: [u8; 5] = [0xce, 0x11, 0x11, 0x11, 0x11];
/// As good as a zero where it stands.
const NONE: u8 = 0xff;
/// As good as a zero for a rule that refuses and wants nothing.
const REFUSES: u8 = 0xfe;

fn text(packed: &mut Vec<u8>, text: &str) {
    packed.push(0xa0 | u8::try_from(text.len()).expect("short"));
    packed.extend_from_slice(text.as_bytes());
}

/// A batch of one call of so many buckets in one hash, as `decide.lua` says: a unit in a microsecond.
pub(crate) fn argument(rules: u8) -> Vec<u8> {
    let mut packed = vec![0x94];
    packed.extend(LARGE);
    packed.extend([0x91, 0x90 | rules]);
    for rule in 0..rules {
        text(&mut packed, &format!("bucket rate{rule}"));
    }
    packed.extend([0x91, 0x93 + rules, 1, NONE, NONE]);
    for rule in 0..rules {
        // A bucket, its slot, one unit, no thresholds; ticks and burst.
        packed.extend([0x98, 1, rule + 1, 1, REFUSES, 0x90, 1, 1]);
        packed.extend(LARGE);
    }
    packed.push(NONE);
    packed
}

/// Makes the scripts known and says their digests: ours and GCRA's.
pub(crate) fn load(server: &RedisServer) -> (String, String) {
    let load = |script| server.query(&["SCRIPT", "LOAD", script]);
    (load(DECIDE), load(GCRA))
}

/// The server's CPU so far, in microseconds.
pub(crate) fn server_cpu(server: &RedisServer) -> f64 {
    let info: String = server.query(&["INFO", "cpu"]);
    let seconds = info.lines().filter_map(|line| {
        let value = line
            .strip_prefix("used_cpu_sys:")
            .or_else(|| line.strip_prefix("used_cpu_user:"))?;
        value.trim().parse::<f64>().ok()
    });
    seconds.sum::<f64>() * 1e6
}

/// Script runs so far.
pub(crate) fn n_scripts(server: &RedisServer) -> f64 {
    let stats: String = server.query(&["INFO", "commandstats"]);
    let calls = stats.lines().filter_map(|line| {
        let line = line.strip_prefix("cmdstat_eval")?;
        let calls = line.split_once("calls=")?.1;
        calls.split(',').next()?.parse::<f64>().ok()
    });
    calls.sum()
}

/// Runs redis-benchmark, and says the runs in a second and the server's CPU for each, in microseconds.
fn benchmark(server: &RedisServer, n: u64, arguments: &[&str], last: &[u8]) -> (f64, f64) {
    let (cpu, started) = (server_cpu(server), Instant::now());
    let mut process = Command::new("redis-benchmark")
        .args(["-p", &server.port.to_string(), "-q", "-P", "16", "-n"])
        .arg(n.to_string())
        .args(if last.is_empty() { &[][..] } else { &["-x"] })
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-benchmark, of the package redis-tools");
    let mut input = process.stdin.take().expect("an input");
    input.write_all(last).expect("written");
    drop(input);
    assert!(process.wait().expect("an end").success());
    let seconds = started.elapsed().as_secs_f64();
    (n as f64 / seconds, (server_cpu(server) - cpu) / n as f64)
}

/// Our script with so many rules.
pub(crate) fn ours(server: &RedisServer, digest: &str, n: u64, rules: u8) -> (f64, f64) {
    let key = format!("tg:1:{{l.raw}}:{rules}");
    benchmark(server, n, &["EVALSHA", digest, "1", &key], &argument(rules))
}

/// The script of GCRA alone: a microsecond for a unit, a second's burst.
pub(crate) fn gcra(server: &RedisServer, digest: &str, n: u64) -> (f64, f64) {
    let arguments = ["EVALSHA", digest, "1", "{raw}:gcra", "1", "1000000"];
    benchmark(server, n, &arguments, &[])
}
