// A workload for `workload.kind = "gate"` that acts only while its device owns: dotnet run -- /run/quorate/lease.json
//
// It runs on every device and reads `workload.lease_file`, which is replaced several times a second. What stands there holds until a
// moment on the boot clock, which is looked at before each act; nothing needs to change for it to stop. Replace Act().
// An act that takes long must end before that moment, or be one that the receiver refuses when it has seen a higher epoch.

using System.Globalization;
using System.Text.Json;

var file = args.Length > 0 ? args[0] : "/run/quorate/lease.json";

// CLOCK_BOOTTIME in nanoseconds. /proc/uptime shows hundredths, rounded down, so one is added: never too early a time.
static long Now()
{
    var seconds = File.ReadAllText("/proc/uptime").Split(' ')[0];
    return (long)((decimal.Parse(seconds, CultureInfo.InvariantCulture) + 0.01m) * 1_000_000_000m);
}

// The epoch to act under, or null.
long? Epoch()
{
    try
    {
        using var lease = JsonDocument.Parse(File.ReadAllText(file));
        var word = lease.RootElement;
        var may = word.GetProperty("active").GetBoolean() && Now() < word.GetProperty("until_boottime_ns").GetInt64();
        return may ? word.GetProperty("epoch").GetInt64() : null;
    }
    catch (Exception why) when (why is IOException or UnauthorizedAccessException or JsonException or KeyNotFoundException or InvalidOperationException)
    {
        Console.Error.WriteLine($"gate: {why.Message}");
        return null;
    }
}

// What only one device of the site may do. Send the epoch along: the receiver refuses lower ones.
static void Act(long epoch) => Console.WriteLine($"{Now()} {epoch}");

while (true)
{
    if (Epoch() is long epoch) Act(epoch);
    Thread.Sleep(20);
}
