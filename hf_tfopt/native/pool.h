// A loop in several threads at once: torch's own where there are such.

#ifndef HF_TFOPT_POOL_H
#define HF_TFOPT_POOL_H

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <vector>

namespace {

// OpenMP's pool of threads that torch's own loops run in, as torch finds it; empty where it has none.
// Its threads spin for milliseconds after a loop of torch's: others would share their processors.
struct Pool {
  void (*run)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;

#if __has_include(<dlfcn.h>)
  Pool() {
    find("GOMP_parallel", run);
    find("omp_get_thread_num", thread);
    find("omp_get_num_threads", threads);
  }

  template <typename Function>
  static void find(const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  }
#endif

  bool is_there() const { return run && thread && threads; }
};

const Pool& torchs_pool() {
  static const Pool pool;
  return pool;
}

// All of torch's threads are called, and those that are too many go home: a pool that is asked for
// fewer than before ends the others.
template <typename Job>
void in_torchs_pool(int num_threads, const Job& job) {
  struct Call {
    const Job* job;
    int num_threads;
  } call{&job, num_threads};
  torchs_pool().run(
      [](void* data) {
        const Call& call = *static_cast<const Call*>(data);
        const int thread = torchs_pool().thread();
        const int threads = std::min(torchs_pool().threads(), call.num_threads);
        if (thread < threads) (*call.job)(thread, threads);
      },
      &call, 0, 0);
}

template <typename Job>
void in_own_threads(int num_threads, const Job& job) {
  std::vector<std::thread> threads;
  std::atomic<int> given{0};
  try {
    for (int t = 1; t < num_threads; ++t) {
      threads.emplace_back([&given, &job, t] {
        while (!given.load()) std::this_thread::yield();
        job(t, given.load());
      });
    }
  } catch (const std::system_error&) {
  }
  given = static_cast<int>(threads.size()) + 1;
  job(0, given.load());
  for (auto& thread : threads) thread.join();
}

// Call job(0, n) .. job(n - 1, n) at once; n is num_threads, or fewer if the system gives no more.
// A negative number: so many of our own, in a process that was forked and so has none of torch's.
template <typename Job>
void in_parallel(int num_threads, const Job& job) {
  if (num_threads > 1 && torchs_pool().is_there()) {
    in_torchs_pool(num_threads, job);
  } else {
    in_own_threads(std::abs(num_threads), job);
  }
}

}  // namespace

#endif
