// A loop in several threads at once: torch's own where there are such.

#ifndef HF_TFOPT_POOL_H
#define HF_TFOPT_POOL_H

#include <dlfcn.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace {

// OpenMP's pool of threads that torch's own loops run in, as torch finds it; null where it has none.
// Its threads spin for milliseconds after a loop of torch's: others would share their processors.
struct Pool {
  void (*run)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread)();
  int (*threads)();
};

const Pool& torchs_pool() {
  auto find = [](const char* name) { return dlsym(RTLD_DEFAULT, name); };
  static const Pool pool{reinterpret_cast<decltype(Pool::run)>(find("GOMP_parallel")),
                         reinterpret_cast<int (*)()>(find("omp_get_thread_num")),
                         reinterpret_cast<int (*)()>(find("omp_get_num_threads"))};
  return pool;
}

// Call job(0, n) .. job(n - 1, n) at once; n is num_threads, or fewer if the system gives no more.
template <typename Job>
void in_parallel(int num_threads, const Job& job) {
  if (num_threads > 1 && torchs_pool().run) {
    auto call = [](void* data) {
      (*static_cast<const Job*>(data))(torchs_pool().thread(), torchs_pool().threads());
    };
    return torchs_pool().run(call, const_cast<Job*>(&job), num_threads, 0);
  }
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

}  // namespace

#endif
