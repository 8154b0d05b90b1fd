// The simulated device against the CPU, and each check against a program that breaks its rule.
#include <torch/torch.h>

#include <ATen/DeviceAccelerator.h>
#include <ATen/autocast_mode.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include <thread>

namespace {

using at::Tensor;

int failures = 0;

void check(const std::string& what, bool fine, const std::string& told = {}) {
  if (!fine) ++failures;
  if (!fine || std::getenv("VERBOSE") != nullptr) std::cout << (fine ? "ok      " : "FAILED  ") << what << (told.empty() ? "" : ": " + told) << std::endl;
}

bool same(const Tensor& a, const Tensor& b) {
  const Tensor x = a.detach().cpu().contiguous(), y = b.detach().cpu().contiguous();
  return x.sizes() == y.sizes() && x.dtype() == y.dtype() && std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

// What a call throws; empty if it does not.
std::string thrown(const std::function<void()>& body) {
  try {
    body();
    return {};
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
}

const at::Device gpu(at::kCUDA, 0), other(at::kCUDA, 1);
const auto float_options = at::TensorOptions(at::kFloat);

c10::impl::VirtualGuardImpl guard() { return c10::impl::VirtualGuardImpl(at::kCUDA); }
c10::Stream side_stream() { return guard().getStreamFromGlobalPool(gpu, false); }

struct OnStream {
  c10::Stream before;
  explicit OnStream(c10::Stream stream) : before(guard().exchangeStream(stream)) {}
  ~OnStream() { guard().exchangeStream(before); }
};

struct Cast {
  at::DeviceType type;
  Cast(at::DeviceType t, bool on, at::ScalarType kind) : type(t) {
    at::autocast::set_autocast_dtype(t, kind);
    at::autocast::set_autocast_enabled(t, on);
    at::autocast::increment_nesting();
  }
  ~Cast() {
    at::autocast::decrement_nesting();
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type, false);
  }
};

// A small network, forward, backward and one update: everything that comes out of it.
std::vector<Tensor> train(at::Device device, at::ScalarType kind) {
  torch::manual_seed(1);
  const auto leaf = [&](std::vector<int64_t> size) { return torch::randn(size).mul_(0.1).to(device).requires_grad_(); };
  const Tensor x = torch::randn({2, 3, 16, 16}).to(device).contiguous(at::MemoryFormat::ChannelsLast);
  Tensor w1 = leaf({8, 3, 3, 3}), w2 = leaf({8, 8, 1, 1}), g = leaf({8}), b = leaf({8}), w3 = leaf({5, 8 * 64}), b3 = leaf({5});
  Tensor mean = torch::zeros(8).to(device), variance = torch::ones(8).to(device);
  Tensor loss, logits;
  {
    const Cast cast(device.type(), kind != at::kFloat, kind);
    Tensor y = torch::relu(torch::batch_norm(torch::conv2d(x, w1, {}, 1, 1), g, b, mean, variance, true, 0.1, 1e-5, true));
    y = torch::max_pool2d(torch::conv2d(y, w2), 2);
    logits = torch::nn::functional::linear(y.flatten(1), w3, b3);
    loss = torch::nn::functional::cross_entropy(logits.to(at::kFloat), torch::tensor({1, 2}, at::kLong).to(device));
  }
  loss.backward();
  std::vector<Tensor> weights{w1, w2, g, b, w3, b3}, grads, first, second, steps, results{logits, loss, mean, variance};
  const at::NoGradGuard no_grad;
  for (auto& w : weights) {
    results.push_back(w.grad());
    grads.push_back(at::empty_like(w).copy_(w.grad()));
    first.push_back(at::zeros_like(w));
    second.push_back(at::zeros_like(w));
    steps.push_back(at::ones({}, float_options.device(device)));
  }
  results.push_back(at::stack(at::_foreach_norm(grads, 2)).norm());
  at::_foreach_mul_(grads, 0.5);
  at::_fused_adamw_(weights, grads, first, second, {}, steps, 1e-3, 0.9, 0.999, 0.05, 1e-8, false, false);
  results.insert(results.end(), weights.begin(), weights.end());
  return results;
}

void networks() {
  for (const auto kind : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto host = train(at::kCPU, kind), device = train(gpu, kind);
    for (size_t i = 0; i < host.size(); ++i) {
      check(c10::str("a network in ", kind, ", result ", i, " as on the CPU"), device[i].device() == gpu && same(host[i], device[i]));
    }
  }
}

void operators() {
  const Tensor h = torch::randn({7, 9}), d = h.to(gpu);
  const std::map<std::string, std::function<Tensor(const Tensor&)>> all{
      {"boolean index", [](const Tensor& t) { return t.index({t > 0}); }},
      {"index by positions", [](const Tensor& t) { return t.index_select(0, torch::tensor({3, 1}).to(t.device())); }},
      {"sort", [](const Tensor& t) { return std::get<1>(t.sort(1)); }},
      {"top k", [](const Tensor& t) { return std::get<0>(t.topk(3)); }},
      {"views", [](const Tensor& t) { return t.t().slice(0, 1, 4).unsqueeze(0); }},
      {"where with a number of the host", [](const Tensor& t) { return at::where(t > 0, t, torch::tensor(2.0f)); }},
      {"split and cat", [](const Tensor& t) { return at::cat({t.split(3, 0)[1], t.unbind(0)[2].unsqueeze(0)}); }},
      {"a result that is resized", [](const Tensor& t) { Tensor r = torch::empty({0}, t.options()); at::add_out(r, t, t); return r; }},
      {"index_put_", [](const Tensor& t) { Tensor r = t.clone(); r.index_put_({r > 0.5}, torch::tensor(9.0f)); return r; }},
      {"arange", [](const Tensor& t) { return torch::arange(5, t.options()); }},
      {"random numbers", [](const Tensor& t) { torch::manual_seed(3); return torch::rand({4}, t.options()); }},
      {"nonzero", [](const Tensor& t) { return (t > 0).nonzero(); }}};
  for (const auto& [name, body] : all) check(name, same(body(h), body(d)));
  check("unfold is a view", d.unfold(0, 2, 1).is_alias_of(d));
  check("item", h.sum().item<float>() == d.sum().item<float>());
  check("nonzero lies transposed", (d > 0).nonzero().stride(0) == 1);
  const Tensor w = torch::randn({4, 8, 1, 1}, float_options.device(gpu)).requires_grad_();
  const Tensor x = torch::randn({2, 8, 5, 5}, float_options.device(gpu)).contiguous(at::MemoryFormat::ChannelsLast);
  torch::conv2d(x, w).sum().backward();
  check("gradients of 1x1 weights have cuDNN's strides", w.grad().strides() == at::IntArrayRef({8, 1, 8, 8}));
  const auto boxes = torch::tensor({0.0f, 1.0f, 1.0f, 9.0f, 9.0f}).view({1, 5});
  static const auto align = c10::Dispatcher::singleton().findSchemaOrThrow("torchvision::roi_align", "")
      .typed<Tensor(const Tensor&, const Tensor&, double, c10::SymInt, c10::SymInt, int64_t, bool)>();
  Tensor f = torch::arange(256.0f).view({1, 1, 16, 16}).to(gpu).requires_grad_();
  const Tensor pooled = align.call(f, boxes.to(gpu), 1.0, 2, 2, 0, true);
  // The mean of a plane over each bin is its value in the bin's middle.
  check("RoIAlign of a plane", torch::allclose(pooled.cpu().flatten(), torch::tensor({2.5f * 17, 2.5f * 16 + 6.5f, 6.5f * 16 + 2.5f, 6.5f * 17})));
  pooled.sum().backward();
  check("RoIAlign's gradient sums to the number of bins", std::abs(f.grad().sum().item<float>() - 4) < 1e-4);
}

void refusals() {
  const Tensor h = torch::randn({3, 3}), d = h.to(gpu), e = h.to(other);
  const std::map<std::string, std::function<void()>> mixes{
      {"device and host", [&] { (void)(d + h); }},
      {"host and device", [&] { (void)(h * d); }},
      {"two devices", [&] { (void)(d + e); }},
      {"mm", [&] { (void)d.mm(h); }},
      {"cat", [&] { (void)at::cat({d, h}); }},
      {"in place into the host's", [&] { Tensor(h).add_(d); }},
      {"an index of the host", [&] { (void)d.index_select(0, torch::tensor({1})); }},
      {"convolution", [&] { (void)torch::conv2d(torch::ones({1, 3, 8, 8}, gpu), torch::ones({2, 3, 3, 3})); }},
      {"steps on the host", [&] {
         const at::NoGradGuard no;
         at::_fused_adamw_({d.clone()}, {d.clone()}, {d.clone()}, {d.clone()}, {}, {torch::ones({})}, 1e-3, 0.9, 0.99, 0.05, 1e-8, false, false);
       }}};
  for (const auto& [name, body] : mixes) check("a mix is refused: " + name, !thrown(body).empty());
  const std::string strides = thrown([&] {
    const at::NoGradGuard no;
    Tensor p = torch::ones({4, 8, 1, 1}, gpu), g = p.contiguous(at::MemoryFormat::ChannelsLast).as_strided({4, 8, 1, 1}, {8, 1, 8, 8});
    at::_fused_sgd_({p}, {g}, {torch::zeros_like(p)}, 0.0, 0.9, 1e-3, 0.0, false, false, false);
  });
  check("fused updates refuse other strides", strides.find("same dtype, device, and layout") != std::string::npos, strides);
  check("an operator without a CUDA kernel", !thrown([&] { (void)at::mkldnn_max_pool2d(d, {2}); }).empty());
  check("more than the memory", thrown([&] { (void)torch::empty({int64_t{1} << 40}, gpu); }).find("CUDA out of memory") != std::string::npos);
}

void memory() {
  const auto now = [] { return at::accelerator::getDeviceStats(0).allocated_bytes[0].current; };
  const auto before = now();
  {
    const Tensor t = torch::empty({1 << 20}, gpu);
    check("memory is counted", now() - before == 4 << 20);
    check("new memory is not a number", t.isnan().all().item<bool>());
  }
  check("memory is given back", now() == before);
}

void transfers() {
  const Tensor h = torch::randn({1000}), pinned = h.pin_memory();
  check("pinned memory is", pinned.is_pinned() && !h.is_pinned());
  const Tensor d = pinned.to(gpu, /*non_blocking=*/true);
  check("an upload from pinned memory", same(d, h));
  Tensor back = torch::empty_like(h).pin_memory();
  back.copy_(d, /*non_blocking=*/true);
  check("a download is NaN before it is waited for", back.isnan().all().item<bool>());
  c10::Event event(at::kCUDA);
  event.record(guard().getStream(gpu));
  check("an event is not done at once", !event.query());
  check("and is at the second question", event.query());
  check("then the download is there", same(back, h));
  back.fill_(0);
  back.copy_(d, true);
  guard().synchronizeStream(guard().getStream(gpu));
  check("or after a wait for the stream", same(back, h));
  Tensor wide = torch::empty({1000}, at::kDouble).pin_memory();
  wide.copy_(d, true);
  check("a download into another type is late, too", wide.isnan().all().item<bool>());
  at::accelerator::synchronizeDevice(0);
  check("and comes", same(wide, h.to(at::kDouble)));
  { Tensor again = h.pin_memory(); (void)again.to(gpu, true); }
  check("pinned memory may be freed before its upload", true);
}

void streams() {
  const auto side = side_stream();
  Tensor t = torch::ones({100}, gpu), u;
  c10::Event ready(at::kCUDA), done(at::kCUDA);
  ready.record(guard().getStream(gpu));
  ready.block(side);
  {
    const OnStream on(side);
    u = t + 1;
    done.record(side);
  }
  done.block(guard().getStream(gpu));
  check("streams that wait for each other", same(u + 0, torch::full({100}, 2.0f)));
}

// Bodies of processes that must end in a certain way.
const std::map<std::string, std::function<void()>> bodies{
    {"touch", [] { const Tensor t = torch::ones({4}, gpu); std::cout << *t.const_data_ptr<float>(); }},
    {"changed", [] { Tensor h = torch::ones({99}).pin_memory(); const Tensor d = h.to(gpu, true); h.fill_(2); at::accelerator::synchronizeDevice(0); }},
    {"unwaited read", [] { const Tensor t = torch::ones({9}, gpu); const OnStream on(side_stream()); (void)(t + 1); }},
    // Ends with the number of waits: one for both events, one for that behind the next kernel; a single question is none.
    {"polled", [] {
       Tensor t = torch::ones({9}, gpu);
       c10::Event first(at::kCUDA), second(at::kCUDA), third(at::kCUDA), peeked(at::kCUDA);
       const auto stream = guard().getStream(gpu);
       const auto poll = [](c10::Event& event) { while (!event.query()) {} };
       first.record(stream);
       t.add_(1);
       second.record(stream);
       poll(first);
       poll(second);
       t.add_(1);
       third.record(stream);
       poll(third);
       poll(third);
       t.add_(1);
       peeked.record(stream);
       (void)peeked.query();
       const std::string path = std::string(std::getenv("FNET_SIM_REPORT")) + "." + std::to_string(getpid());
       std::ifstream report(path);
       int waits = 0, number = 0;
       std::string line, kind;
       while (std::getline(report, line)) {
         if (std::istringstream(line) >> number >> kind && kind == "wait") waits += number;
       }
       unlink(path.c_str());
       unlink((path + ".steps").c_str());
       _exit(waits);
     }},
    {"unwaited write", [] {
       const auto side = side_stream();
       Tensor t = torch::ones({9}, gpu);
       c10::Event ready(at::kCUDA);
       ready.record(guard().getStream(gpu));
       ready.block(side);
       { const OnStream on(side); (void)(t + 1); }
       t.fill_(0);
     }},
    {"freed", [] {
       const auto side = side_stream();
       Tensor t = torch::ones({9}, gpu), u;
       c10::Event ready(at::kCUDA);
       ready.record(guard().getStream(gpu));
       ready.block(side);
       { const OnStream on(side); u = t + 1; }
       t.reset();
     }},
    {"recorded", [] {
       const auto side = side_stream();
       Tensor t = torch::ones({9}, gpu), u;
       c10::Event ready(at::kCUDA);
       ready.record(guard().getStream(gpu));
       ready.block(side);
       { const OnStream on(side); u = t + 1; t.record_stream(side); }
       t.reset();
       at::accelerator::synchronizeDevice(0);
     }},
    {"another device", [] { std::thread([] { (void)torch::ones({4}, other); }).join(); }},
    {"sticky", [] {
       for (int i = 0; i < 20; ++i) {
         const std::string told = thrown([] { (void)torch::ones({4}, gpu).add(1); });
         if (told.empty()) continue;
         if (told.find("ECC") == std::string::npos) _exit(8);
         if (thrown([] { at::accelerator::synchronizeDevice(0); }).empty()) _exit(9);
         _exit(7);
       }
     }},
    {"oom", [] {
       for (int i = 1; i < 9; ++i) {
         const std::string told = thrown([] { (void)torch::empty({4}, gpu); });
         if (!told.empty()) _exit(i == 5 && told.find("out of memory") != std::string::npos ? 7 : 8);
       }
     }},
    {"engine", [] {
       const std::string told = thrown([] { (void)torch::conv2d(torch::ones({1, 3, 8, 8}, gpu), torch::ones({2, 3, 3, 3}, gpu)); });
       _exit(told.find("GET was unable to find an engine") != std::string::npos ? 7 : 8);
     }},
    {"deterministic", [] {
       at::globalContext().setDeterministicAlgorithms(true, false);
       const Tensor t = torch::ones({4, 4}, gpu);
       _exit(thrown([&] { (void)t.cumsum(0); }).empty() || thrown([&] { (void)t.mm(t); }).empty() ? 8 : 7);
     }},
    {"unordered", [] {
       torch::manual_seed(1);
       const Tensor rows = torch::randn({4000, 1}).to(gpu), index = torch::zeros({4000}, at::kLong).to(gpu);
       const auto sum = [&] { return torch::zeros({1, 1}, gpu).index_add(0, index, rows).cpu(); };
       const Tensor first = sum();
       for (int i = 0; i < 20; ++i) if (!same(first, sum())) _exit(7);
     }},
    {"no compute", [] {
       Tensor t = torch::ones({3, 4}, gpu);
       t.add_(1);
       const Tensor u = t.mm(torch::ones({4, 5}, gpu));
       _exit(u.size(1) == 5 && same(u, torch::zeros({3, 5})) ? 7 : 8);
     }},
    {"exclusive", [] { guard().setDevice(gpu); sleep(2); }},
    {"visible", [] { _exit(10 + at::accelerator::deviceCount()); }},
};

// A program of its own with settings; returns its status and what it told on stderr.
std::pair<int, std::string> child(const std::string& body, std::vector<std::pair<const char*, const char*>> settings) {
  char path[] = "/tmp/fnet-sim-test-XXXXXX";
  const int file = mkstemp(path);
  const pid_t process = fork();
  if (process == 0) {
    dup2(file, 2);
    for (const auto& [name, value] : settings) setenv(name, value, 1);
    execl("/proc/self/exe", "test_device", body.c_str(), nullptr);
    _exit(99);
  }
  int status = 0;
  waitpid(process, &status, 0);
  std::ifstream stream(path);
  std::stringstream text;
  text << stream.rdbuf();
  unlink(path);
  close(file);
  return {status, text.str()};
}

void processes() {
  const auto dies = [](const char* body, const char* words) {
    const auto [status, told] = child(body, {{"FNET_SIM_ANY_DEVICE", "0"}});
    check(std::string("ends the process: ") + body, WIFSIGNALED(status) && told.find(words) != std::string::npos, told.substr(0, 400));
  };
  dies("touch", "the host touched memory of cuda:0");
  dies("changed", "pinned host memory was changed");
  dies("unwaited read", "reads memory that stream 0 of cuda:0 writes");
  dies("unwaited write", "writes memory that stream 1 of cuda:0 reads");
  dies("freed", "was freed while stream 1 of cuda:0 may still use it");
  dies("another device", "in a process whose device is cuda:0");
  const auto ends = [](const char* body, int code, std::vector<std::pair<const char*, const char*>> settings) {
    const auto [status, told] = child(body, settings);
    check(c10::str("ends with ", code, ": ", body, " ", settings.empty() ? "" : settings[0].second), WIFEXITED(status) && WEXITSTATUS(status) == code,
          c10::str(status, " ", told.substr(0, 400)));
  };
  ends("recorded", 0, {});
  const std::string report = "/tmp/fnet-sim-report-" + std::to_string(getpid());
  ends("polled", 2, {{"FNET_SIM_REPORT", report.c_str()}});
  ends("sticky", 7, {{"FNET_SIM_FAULT", "ecc@10"}});
  ends("sticky", 0, {{"FNET_SIM_FAULT", "ecc@10/3"}});
  ends("oom", 7, {{"FNET_SIM_FAULT", "oom@5"}});
  ends("engine", 7, {{"FNET_SIM_FAULT", "no-engine@1"}});
  ends("deterministic", 7, {});
  ends("unordered", 7, {{"FNET_SIM_UNORDERED", "1"}});
  ends("unordered", 0, {});
  ends("no compute", 7, {{"FNET_SIM_NO_COMPUTE", "0"}});
  for (const auto& [visible, count] : std::map<const char*, int>{{"", 0}, {"1", 1}, {"3,0", 2}, {"0,9,1", 1}, {"GPU-a0b0", 1}, {"GPU-a3b3c303,GPU-a0", 2}, {"1,1", 0}, {"GPU-a", 0}}) {
    ends("visible", 10 + count, {{"CUDA_VISIBLE_DEVICES", visible}});
  }
  std::thread first([&] { ends("exclusive", 0, {{"FNET_SIM_EXCLUSIVE", "1"}}); });
  sleep(1);
  const auto [status, told] = child("exclusive", {{"FNET_SIM_EXCLUSIVE", "1"}});
  check("an exclusive card takes one process", status != 0 && told.find("busy or unavailable") != std::string::npos, told.substr(0, 200));
  first.join();
}

// ---- collectives of two ranks -----------------------------------------------------------------------------------------

using Group = c10d::ProcessGroupNCCL;

std::vector<Tensor> filled(float value) { return {torch::full({300000}, value, gpu)}; }

int rank_body(const std::string& mode, int rank, const std::string& path) {
  auto store = c10::make_intrusive<c10d::FileStore>(path, 2);
  Group group(store, rank, 2);
  group.eagerConnectSingleDevice(gpu);
  const auto sum = filled(static_cast<float>(rank + 1));
  auto tensors = sum;
  if (mode == "values") {
    auto work = group.allreduce(tensors, {});
    const auto future = work->getFuture();
    if (!future->completed()) return 2;
    work->wait();
    if (!same(tensors[0] * 1, torch::full({300000}, 3.0f))) return 3;
    auto shown = filled(static_cast<float>(rank));
    c10d::BroadcastOptions root;
    root.rootRank = 1;
    group.broadcast(shown, root)->wait();
    if (!same(shown[0], torch::full({300000}, 1.0f))) return 4;
    std::vector<std::vector<Tensor>> all{{torch::empty({2}, gpu), torch::empty({2}, gpu)}};
    std::vector<Tensor> own{torch::full({2}, static_cast<float>(rank), gpu)};
    group.allgather(all, own, {})->wait();
    if (!same(all[0][1], torch::ones({2}))) return 5;
    // In order behind a sum whose peer is late: the host goes on, results come right.
    if (rank == 1) sleep(1);
    auto late = filled(2);
    group.allreduce(late, {})->wait();
    const Tensor more = late[0] * 2 + 1;
    const Tensor image = late[0].view({1, 1, 1, -1});
    const auto [unwanted, slope, none] = at::convolution_backward(torch::ones_like(image), image, torch::ones({1, 1, 1, 1}, gpu), std::nullopt,
                                                                  {1, 1}, {0, 0}, {1, 1}, false, {0, 0}, 1, {false, true, false});
    Tensor kept = torch::zeros({300000}, gpu);
    kept.add_(more).add_(more.slice(0, 0, 300000));
    if (!same(kept, torch::full({300000}, 18.0f))) return 6;
    if (!same(slope, torch::full({1, 1, 1, 1}, 1200000.0f))) return 7;
    group.shutdown();
    return 0;
  }
  if (mode == "unwaited") {
    (void)group.allreduce(tensors, {});
    (void)(tensors[0] + 1);
    return 2;
  }
  if (mode == "order") {
    if (rank == 0) group.allreduce(tensors, {})->wait(std::chrono::seconds(20));
    else group.broadcast(tensors, {})->wait(std::chrono::seconds(20));
    return 2;
  }
  // A peer that takes no part: whoever only enqueues goes on, events say no, an abort ends it.
  auto work = group.allreduce(tensors, {});
  if (rank == 1) {
    sleep(2);
    return 0;
  }
  work->wait();
  Tensor next = tensors[0] + 1;
  next.mul_(2);
  c10::Event event(at::kCUDA);
  event.record(guard().getStream(gpu));
  for (int i = 0; i < 5; ++i) if (event.query()) return 2;
  if (mode == "error") return group.getError() == c10d::ErrorType::COMM_ERROR ? 0 : 3;
  if (thrown([&] { group.allreduce(tensors, {})->wait(std::chrono::milliseconds(100)); }).find("timeout") == std::string::npos) return 4;
  group.abort();
  at::accelerator::synchronizeDevice(0);
  return 0;
}

void ranks() {
  const auto run = [](const char* mode, const char* setting, const std::function<bool(int, const std::string&)>& fine) {
    const std::string path = "/tmp/fnet-sim-store-" + std::to_string(getpid());
    unlink(path.c_str());
    setenv("STORE", path.c_str(), 1);
    std::pair<int, std::string> ends[2];
    std::thread peers[2];
    for (int r = 0; r < 2; ++r) {
      peers[r] = std::thread([&, r] { ends[r] = child(std::string("rank ") + mode, {{"RANK", r == 0 ? "0" : "1"}, {"FNET_SIM_NCCL", setting}, {"FNET_SIM_GRACE_MS", "50"},
                                                                           {"CUDA_VISIBLE_DEVICES", r == 0 || std::string(mode) == "twice" ? "0" : "1"}}); });
    }
    for (auto& peer : peers) peer.join();
    unlink(path.c_str());
    check(std::string("two ranks: ") + mode, fine(ends[0].first, ends[0].second + ends[1].second), c10::str(ends[0].first, " ", ends[1].first, " ", ends[0].second.substr(0, 300)));
  };
  const auto succeeds = [](int status, const std::string&) { return status == 0; };
  run("values", "", succeeds);
  run("unwaited", "", [](int status, const std::string& told) { return WIFSIGNALED(status) && told.find("nothing makes the one wait") != std::string::npos; });
  run("order", "", [](int, const std::string& told) { return told.find("collectives in different orders") != std::string::npos; });
  run("twice", "", [](int status, const std::string& told) { return status != 0 && told.find("Duplicate GPU detected") != std::string::npos; });
  run("silent", "silent@1/1", succeeds);
  run("error", "error@1/0", succeeds);
}

}  // namespace

int main(int count, char** arguments) {
  at::set_num_threads(1);
  at::globalContext().lazyInitDevice(at::kCUDA);
  if (count > 1) {
    const std::string body = arguments[1];
    if (body != "exclusive" && body != "visible") guard().setDevice(gpu);
    if (body.rfind("rank ", 0) == 0) _exit(rank_body(body.substr(5), std::atoi(std::getenv("RANK")), std::getenv("STORE")));
    const auto found = bodies.find(body);
    if (found == bodies.end()) return 3;
    found->second();
    _exit(0);
  }
  setenv("FNET_SIM_ANY_DEVICE", "1", 1);
  guard().setDevice(gpu);
  networks();
  operators();
  refusals();
  memory();
  transfers();
  streams();
  unsetenv("FNET_SIM_ANY_DEVICE");
  processes();
  ranks();
  std::cout << (failures == 0 ? "all passed" : std::to_string(failures) + " failed") << std::endl;
  return failures != 0;
}
