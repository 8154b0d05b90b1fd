// Faults on request, and the end of a process that did something wrong.
//
// FNET_SIM_FAULT is a list of KIND@N or KIND@N/RANK: `oom` (the Nth allocation), `no-engine` (the Nth convolution), and from
// the Nth operator on `ecc` (214), `illegal` (700), `launch` (719) or any number as the code of every call.
#include "sim.h"

#include <execinfo.h>
#include <signal.h>
#include <unistd.h>

namespace sim {

[[noreturn]] void die(const std::string& what) {
  const std::string text = "simulated CUDA: " + what + "\n";
  (void)!write(2, text.data(), text.size());
  void* frames[48];
  backtrace_symbols_fd(frames, backtrace(frames, 48), 2);
  // Also where stderr goes nowhere.
  if (const char* path = std::getenv("FNET_SIM_VIOLATIONS")) {
    if (FILE* file = std::fopen(path, "a")) {
      std::fputs(text.c_str(), file);
      std::fclose(file);
    }
  }
  signal(SIGABRT, SIG_DFL);
  std::abort();
}

namespace {

struct Fault {
  std::string kind;
  int64_t at = 0;
};

const std::vector<Fault>& faults() {
  static const auto* list = [] {
    auto* result = new std::vector<Fault>();
    const std::string own = sim_text("RANK", "0");
    std::string text = sim_text("FNET_SIM_FAULT", "");
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      const std::string item = text.substr(begin, end - begin);
      const size_t at = item.find('@'), slash = item.find('/');
      if (at == std::string::npos) die("FNET_SIM_FAULT has `" + item + "`, expected KIND@N or KIND@N/RANK");
      if (slash == std::string::npos || item.substr(slash + 1) == own) {
        result->push_back({item.substr(0, at), std::atoll(item.c_str() + at + 1)});
      }
      begin = end + 1;
    }
    return result;
  }();
  return *list;
}

bool is_due(const char* kind, int64_t number) {
  for (const Fault& fault : faults()) {
    if (fault.kind == kind && fault.at == number) return true;
  }
  return false;
}

std::atomic<int> broken{0};

const char* text_of(int code) {
  switch (code) {
    case 46: return "CUDA-capable device(s) is/are busy or unavailable";
    case 209: return "no kernel image is available for execution on the device";
    case 214: return "uncorrectable ECC error encountered";
    case 700: return "an illegal memory access was encountered";
    case 719: return "unspecified launch failure";
    default: return "unknown error";
  }
}

}  // namespace

[[noreturn]] void throw_code(int code) {
  throw c10::AcceleratorError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, code,
                              std::string("CUDA error: ") + text_of(code) +
                                  "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
                                  "stacktrace below might be incorrect.");
}

void check_usable() {
  if (const int code = broken.load()) throw_code(code);
}

void break_device(int code) {
  broken = code;
  wake_streams();
}

// Called before each operator.
void fault_before_operator() {
  static std::atomic<int64_t> number{0};
  const int64_t n = ++number;
  for (const Fault& fault : faults()) {
    if (fault.at > n || fault.kind == "oom" || fault.kind == "no-engine") continue;
    const int code = fault.kind == "ecc" ? 214 : fault.kind == "illegal" ? 700 : fault.kind == "launch" ? 719
                                                                                   : std::atoi(fault.kind.c_str());
    if (code > 0 && broken == 0) break_device(code);
  }
  check_usable();
}

void fault_before_convolution() {
  static std::atomic<int64_t> number{0};
  if (is_due("no-engine", ++number)) {
    TORCH_CHECK(false, "GET was unable to find an engine to execute this computation");
  }
}

bool fault_at_allocation() {
  static std::atomic<int64_t> number{0};
  return is_due("oom", ++number);
}

}  // namespace sim
