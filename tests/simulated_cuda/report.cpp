// Counts of operators and waits, in files that outlive the process however it ends.
//
// FNET_SIM_REPORT=FILE: FILE.PID holds a line per count, "COUNT KIND NAME"; FILE.PID.steps a line of JSON per training
// step, from the first convolution after an update to that of the next step.
#include "sim.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace sim {
namespace {

constexpr size_t kRow = 128;
constexpr size_t kRows = 1500;
constexpr const char* kKinds[] = {"operator", "wait", "other"};

struct Row {
  int64_t total = 0, before = 0;
  char* text = nullptr;
};

struct Report {
  std::mutex mutex;
  std::map<std::pair<int, std::string>, Row> rows;
  char* file = nullptr;
  FILE* steps = nullptr;
  int64_t step = 0;

  Report() {
    const char* path = std::getenv("FNET_SIM_REPORT");
    if (path == nullptr) return;
    const std::string name = std::string(path) + "." + std::to_string(getpid());
    const int handle = open(name.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (handle < 0 || ftruncate(handle, kRows * kRow) != 0) die("cannot write " + name);
    void* mapped = mmap(nullptr, kRows * kRow, PROT_READ | PROT_WRITE, MAP_SHARED, handle, 0);
    if (mapped == MAP_FAILED) die("cannot map " + name);
    file = static_cast<char*>(mapped);
    std::memset(file, '\n', kRows * kRow);
    steps = std::fopen((name + ".steps").c_str(), "we");
  }

  void add(int kind, const std::string& name, int64_t by) {
    if (file == nullptr) return;
    const std::lock_guard<std::mutex> lock(mutex);
    Row& row = rows[{kind, name}];
    if (row.text == nullptr && rows.size() <= kRows) row.text = file + (rows.size() - 1) * kRow;
    row.total += by;
    if (row.text == nullptr) return;
    char line[kRow + 1];
    const int size = std::snprintf(line, sizeof line, "%12lld %-8s %s", static_cast<long long>(row.total), kKinds[kind], name.c_str());
    std::memcpy(row.text, line, std::min<size_t>(size, kRow - 1));
  }

  void end_step() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (steps == nullptr) return;
    std::string parts[3];
    int64_t sums[3] = {0, 0, 0};
    for (auto& [key, row] : rows) {
      if (row.total == row.before) continue;
      const int64_t now = row.total - row.before;
      row.before = row.total;
      sums[key.first] += now;
      std::string& part = parts[key.first];
      part += (part.empty() ? "\"" : ", \"") + key.second + "\": " + std::to_string(now);
    }
    std::fprintf(steps, "{\"step\": %lld, \"operators\": %lld, \"waits\": %lld, \"operator\": {%s}, \"wait\": {%s}, \"other\": {%s}}\n",
                 static_cast<long long>(++step), static_cast<long long>(sums[0]), static_cast<long long>(sums[1]),
                 parts[0].c_str(), parts[1].c_str(), parts[2].c_str());
    std::fflush(steps);
  }
};

Report& report() {
  static auto* one = new Report();
  return *one;
}

}  // namespace

void count(Count kind, const std::string& name, int64_t by) { report().add(static_cast<int>(kind), name, by); }
namespace {
std::atomic<bool> updated{false};
std::atomic<int64_t> steps{0}, calls{0};
}  // namespace

int64_t steps_done() { return steps; }
int64_t next_call() { return calls++; }
void step_is_over() { updated = true; }
void convolution_begins() {
  if (!updated.exchange(false)) return;
  ++steps;
  calls = 0;
  report().end_step();
}

}  // namespace sim
