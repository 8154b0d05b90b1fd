// What libraries print through std::cerr: warnings of c10 (TORCH_WARN, TORCH_WARN_ONCE) on any thread, its log, and Gloo's.
#include "bridge.h"

#include <iostream>
#include <streambuf>

namespace fnet {
namespace {

using Take = void (*)(const char*, size_t);

// A line longer than this is handed over in pieces.
constexpr size_t kLongestLine = 1 << 16;

// Hands every line to a function. A line that is begun is its thread's own.
class Lines : public std::streambuf {
 public:
  explicit Lines(Take take) : take_(take) {}

 private:
  std::streamsize xsputn(const char* text, std::streamsize count) override {
    thread_local std::string begun;
    begun.append(text, static_cast<size_t>(count));
    for (size_t end = begun.find('\n'); end != std::string::npos; end = begun.find('\n')) {
      take_(begun.data(), end);
      begun.erase(0, end + 1);
    }
    if (begun.size() >= kLongestLine) {
      take_(begun.data(), begun.size());
      begun.clear();
    }
    return count;
  }

  int_type overflow(int_type value) override {
    if (traits_type::eq_int_type(value, traits_type::eof())) return traits_type::not_eof(value);
    const char character = traits_type::to_char_type(value);
    xsputn(&character, 1);
    return value;
  }

  const Take take_;
};

}  // namespace
}  // namespace fnet

// To be called once, before there are other threads. The buffer stays to the end of the process, as std::cerr does.
extern "C" FnetError* fnet_take_diagnostics(fnet::Take take) {
  return fnet::guarded([&] { std::cerr.rdbuf(new fnet::Lines(take)); });
}
