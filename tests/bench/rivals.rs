//! What other ways to make a workload highly available measured, to print beside our own figures.
//!
//! Measured on 2026-11-22 on the same kind of machine, each on three network namespaces, with a workload that ticks
//! every 5 ms; each gap contains about 20 ms to start that workload. Not measured again here, so compare orders of
//! magnitude, not digits. "Kill" is the owner's device killed, from the fault to the first tick elsewhere; "stop" the
//! agent stopped in good order; "overlap" the longest time that two workloads were active after any of eight faults
//! (agent killed or stopped, partition, unplugged, one-way cuts, freezes).

const COLUMNS: [(&str, usize); 6] = [
    ("", 27),
    ("kill p50 / max", 19),
    ("stop p50", 8),
    ("overlap", 8),
    ("RSS / PSS MiB", 13),
    ("CPU owner / standby", 19),
];

#[rustfmt::skip]
const RIVALS: [[&str; 6]; 10] = [
    ["keepalived 2.2.7, default", "3.02 s / 3.50 s", "643 ms", "endless", "13.1 / 2.8", "0.0 % / 0.0 %"],
    ["keepalived 2.2.7, 100 ms", "289 ms / 400 ms", "42 ms", "endless", "13.1 / 2.6", "0.1 % / 0.1 %"],
    ["keepalived 2.2.7, 10 ms", "69 ms / 148 ms", "50 ms", "endless", "13.1 / 2.7", "1.2 % / 0.6 %"],
    ["etcd 3.4 lock, 1 s lease", "1.43 s / 1.60 s", "2.34 s", "endless", "58.5 / 30.7", "6.1 % / 4.9 %"],
    ["etcd 3.4 elect, 60 s lease", "62.28 s / 62.39 s", "32 ms", "none", "45.8 / 23.1", "1.3 % / 1.2 %"],
    ["Consul 1.8 lock", "20.58 s / 20.84 s", "44 ms", "endless", "100.2 / 39.4", "0.7 % / 1.7 %"],
    ["ZooKeeper 3.8, default", "8.20 s / 10.79 s", "51 ms", "endless", "100.2 / 76.8", "0.4 % / 0.4 %"],
    ["ZooKeeper 3.8, 1 s session", "1.57 s / 2.39 s", "61 ms", "endless", "100.5 / 77.1", "1.2 % / 1.4 %"],
    ["Pacemaker, default", "7.97 s / 8.00 s", "239 ms", "endless", "212.8 / 142.2", "0.8 % / 0.7 %"],
    ["Pacemaker, 1 s token", "3.58 s / 4.91 s", "204 ms", "endless", "212.4 / 141.4", "1.6 % / 1.0 %"],
];

/// The table, with the named columns only.
pub(super) fn table(columns: &[&str]) -> String {
    let header = COLUMNS.map(|(name, _)| name);
    let mut text =
        "Others, measured on the same kind of machine (2 cores, Linux 6.18, 629 runs):\n".to_owned();
    for row in std::iter::once(&header).chain(&RIVALS) {
        for (cell, (name, width)) in row.iter().zip(COLUMNS) {
            match name {
                "" => text += &format!("  {cell:<width$}"),
                _ if columns.contains(&name) => text += &format!("  {cell:>width$}"),
                _ => {}
            }
        }
        text.push('\n');
    }
    text
}
