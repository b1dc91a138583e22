// A step on a manifold for the price of a plain one: each weight, gradient and buffer is read once,
// each weight and buffer written once (columns and whole tensors: read twice).
//
// A step stays in the span of the weight x, the gradient g and the buffer b of its slice,
//
//     x <- x1 x + x2 g + x3 b            b <- b1 x + b2 g + b3 b
//
// and the six coefficients depend on the slice through its inner products alone: <x,x>, <x,g>,
// <g,g>, <x,b>, <g,b>, <b,b>. `gram` computes these, `update` writes by given coefficients, and
// `step` does both and computes the coefficients in between, some slices at a time, which stay in
// the cache. The formulas are those of manifoldnet/optim/step.py.
//
// Products are summed a few in the type of the weight, these sums in double; what is left of
// <v,v> - <x,v>^2/<x,x>, the square of a tangent part, is exact to rounding unless it is small.
// Then, and where squares overflow, it is formed in a wider type, and x is measured after its step.
//
// A slice that is zero, and on a sphere one whose step is zero, stays as it is.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
#endif

namespace {

// FRAME is no retraction: there x is a gradient and g the weight, and what is written is the
// Riemannian gradient in the frame of the metric, g - <x,g>/<x,x> x on a sphere, else |x| g.
enum Retraction : int64_t { PROJECTIVE, GREAT_CIRCLE, SCALED_GEODESIC, ADDITIVE, FRAME };

constexpr bool on_sphere(Retraction r) { return r == PROJECTIVE || r == GREAT_CIRCLE; }

}  // namespace

// As in __init__.py, field for field. With d = (constant + root |x| + linear <x,x>) g (on a sphere
// its tangent part) the new buffer is n = fresh d + keep b, and the step -lr (direct d + heavy n).
struct Options {
  Retraction retraction;
  double radius, lr, constant, root, linear;
  double keep, fresh;   // keep: 0 where there is no buffer, or one without a value
  double direct, heavy;
  double beta2, eps, unbias1, unbias2;  // of Adam, 1 - beta^t
  double decay;         // the share of x that is taken off the step
  double s_factor;      // of <d,d> that the second moment takes: 1, or one over a slice's size
};

struct Weight {
  void *x, *g, *b;      // b may be null
  void *s, *max_s;        // second moments and their maxima, one number a slice; may be null
  int64_t outer, count, inner;  // a slice is x[:, i, :] of (outer, count, inner)
  // Of `gram` the products and of `update` the coefficients, kind by kind, slice by slice; of
  // `step` the least and the largest <x,x>.
  double *numbers;
  const double *along;  // of `gram`: what to take off g and b, as multiples of x; may be null
  void *y;              // where the new weight goes; null for the place of x
};

namespace {

enum Task { GRAM = 1, UPDATE = 2, STEP = 3 };

// Kinds of numbers of a slice: its products, and its coefficients with what else its step needs.
enum { XX, XG, GG, XB, GB, BB, PRODUCTS };
enum { X1, X2, X3, B1, B2, B3, S, MAX_S, EXACT, COEFFICIENTS };

constexpr int64_t SMALL = 1 << 16;  // numbers; below, a weight is one thread's
constexpr int64_t LONG = 1 << 17;   // a slice that is worth all threads
constexpr int64_t CHUNK = 1 << 14;  // numbers of it that are summed in one go
constexpr int64_t BLOCK = 1 << 12;  // numbers of rows that are stepped together
constexpr int64_t MANY = 1 << 6;    // rows that are, at most
constexpr int64_t AHEAD = 1 << 10;  // numbers to ask memory for in advance, at least
constexpr int64_t NEAR = 1 << 7;    // the same, where many rows are read along
constexpr int64_t TILE = 1 << 13;   // columns whose sums stay in the cache
constexpr int64_t NARROW = 1 << 6;  // columns of a panel that is worth it, at least
constexpr int64_t STRIPES = 16;     // of rows, the sums of which are kept apart, at most
constexpr int64_t HIGH = 64;        // rows of a stripe, at least
constexpr int ROWS = 4;             // that are read and written together
constexpr int64_t FEW = 8;          // products that are summed before their sum is taken to double
constexpr int LANES = 16;           // sums that are kept apart so that none waits for the last one
constexpr int HALF = LANES / 2;     // the same, of those in double

// Bytes of columns that stay in a processor's own cache.
int64_t panel() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (cache > 0) return cache / 4 * 3;
#endif
  return 3 << 18;
}

// What a slice is summed in where the ordinary sums do not do: its squares have twice the exponent.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, float>, double, long double>;

template <class R>
struct Products {
  R xx = 0, xg = 0, gg = 0, xb = 0, gb = 0, bb = 0;
  bool tangent = false;  // whether those without x are of what is orthogonal to x
};

// The coefficients of a slice, its second moments, and whether rounding on the way was too much.
struct Coefficients {
  double x1, x2, x3, b1, b2, b3, s, max_s;
  double cancelled;  // 1 where the step is all but nothing beside what it was made of
};

// The least and the largest <x,x> of some slices. NaN, which is neither, stays out of both.
struct Range {
  double least = std::numeric_limits<double>::infinity(), most = 0;

  void add(double xx) { least = std::min(least, xx), most = std::max(most, xx); }
  void add(const Range &r) { least = std::min(least, r.least), most = std::max(most, r.most); }
};
#pragma omp declare reduction(join : Range : omp_out.add(omp_in)) initializer(omp_priv = Range())

// Writes a number, computing in C.
template <class C, class T, bool BUFFER>
inline void put(T *y, const T *x, const T *g, T *b, int64_t i, C x1, C x2, C x3, C b1, C b2,
                C b3) {
  const C p = x[i], q = g[i], w = BUFFER ? b[i] : T(0);
  const C end = x1 * p + x2 * q, z = b1 * p + b2 * q;
  y[i] = T(BUFFER ? end + x3 * w : end);
  if (BUFFER) b[i] = T(z + b3 * w);
}

// --- coefficients: without branches, so that some slices share an instruction ------------------

// How a step u = s_u x + t_u carries the point, x' = a x + b t_u, and a vector v = s_v x + t_v:
// v' = c x + d t_u + e t_v; t_u and t_v at right angles to x.
template <class R>
struct Carried {
  R a, b, c, d, e;
};

template <Retraction WAY, class R>
inline Carried<R> carry(const Options &o, R rr, R su, R sv, R uu, R uv) {
  const R radius = o.radius;
  if (WAY == ADDITIVE) return {1 + su, 1, sv, 0, 1};
  if (WAY == PROJECTIVE) {
    const R r = std::sqrt(rr), end = std::sqrt(rr + uu), per_end = 1 / end;
    const R turn = -uv / (end + r), size = radius * per_end;
    return {size, size, turn * (1 / r + per_end), turn * per_end, 1};
  }
  const R unit = WAY == GREAT_CIRCLE ? radius * radius : rr;
  const R turned = std::sqrt(uu / unit), angle = std::min(turned, R(4503599627370496.0));
  const R half = std::sin(angle / 2), other = std::cos(angle / 2);
  const R cos = 1 - 2 * half * half, sin = 2 * half * other;
  const bool still = angle < R(1e-150);
  const R sinc = still ? 1 : sin / turned;
  const R versed = still ? R(0.5) : 2 * half * half / (uu / unit);
  const R along = uv / unit;
  if (WAY == GREAT_CIRCLE) {
    const R size = radius / std::sqrt(cos * cos * rr + sinc * sinc * uu);
    Carried<R> k{size * cos, size * sinc, -along * sinc, -along * versed, 1};
    // What rounding of the radius left along the new point.
    const R off = (k.a * k.c * rr + k.b * (k.d * uu + uv)) / (radius * radius);
    k.c -= off * k.a;
    k.d -= off * k.b;
    return k;
  }
  const R stretch = std::exp(su);
  return {stretch * cos, stretch * sinc, stretch * (sv * cos - along * sinc),
          stretch * (sv * sinc - along * versed), stretch};
}

template <class R>
inline R larger(R a, R b) {  // NaN in b stays
  return a > b ? a : b;
}

// The coefficients of a slice from its products, and its second moments so far.
template <class T, Retraction WAY, bool ADAM, bool BUFFER, class R>
inline Coefficients coefficients(const Options &o, const Products<R> &p, double s, double max_s) {
  constexpr bool sphere = on_sphere(WAY);
  if (WAY == FRAME) {  // x and g have changed places
    const R share = p.gg == 0 ? R(0) : p.xg / p.gg;
    return {o.radius ? 1.0 : double(std::sqrt(p.gg)), o.radius ? -double(share) : 0.0};
  }
  const R rr = p.xx, scale = R(o.constant) + R(o.root) * std::sqrt(rr) + R(o.linear) * rr;
  // g and b taken apart: a multiple of x, and what is orthogonal to it. Of zero nothing is.
  const R per = rr == 0 ? R(0) : 1 / rr, sg = p.xg * per, sb = BUFFER ? p.xb * per : R(0);
  const R gg = p.tangent ? p.gg : larger(R(0), p.gg - sg * p.xg);
  const R gb = !BUFFER ? R(0) : p.tangent ? p.gb : p.gb - sg * p.xb;
  const R bb = !BUFFER ? R(0) : p.tangent ? p.bb : larger(R(0), p.bb - sb * p.xb);
  R rate = o.lr;
  if (ADAM) {
    const R dd = sphere ? gg : rr * (gg + sg * p.xg);
    s = T(R(o.beta2) * R(s) + R(1 - o.beta2) * dd * R(o.s_factor));
    max_s = larger(max_s, s);
    const R root = std::sqrt(R(max_s) / R(o.unbias2)) + R(o.eps);
    // Without eps: where there never was a gradient there is no step.
    rate = root == 0 ? R(0) : rate / (root * R(o.unbias1));
  }
  // The new buffer n = ng g + nb b, and the step u = ug g + ub b.
  const R ng = scale * R(o.fresh), nb = BUFFER ? R(o.keep) : R(0);
  const R ug = -rate * (R(o.direct) * scale + R(o.heavy) * ng), ub = -rate * R(o.heavy) * nb;
  const R of_g = ug * ug * gg, of_b = ub * ub * bb;
  const R uu = larger(R(0), of_g + 2 * ug * ub * gb + of_b);
  const R uv = ug * ng * gg + (ug * nb + ub * ng) * gb + ub * nb * bb;
  const R su = sphere ? R(0) : ug * sg + ub * sb - R(o.decay), sv = sphere ? R(0) : ng * sg + nb * sb;
  const Carried<R> k = carry<WAY, R>(o, rr, su, sv, uu, uv);
  const R tg = (k.d == 0 ? R(0) : k.d * ug) + k.e * ng;
  const R tb = (k.d == 0 ? R(0) : k.d * ub) + k.e * nb;
  // A slice of zeros stays, and so does one of a sphere without a step. (Compilers compute several
  // slices at once if conditions are comparisons, and not made of others.)
  R x1 = k.a - k.b * (ug * sg + ub * sb), x2 = k.b * ug, x3 = k.b * ub;
  if (sphere) x1 = uu == 0 ? R(1) : x1, x2 = uu == 0 ? R(0) : x2, x3 = uu == 0 ? R(0) : x3;
  return {double(rr == 0 ? R(1) : x1),
          double(rr == 0 ? R(0) : x2),
          double(rr == 0 ? R(0) : x3),
          double(rr == 0 ? R(0) : k.c - (tg * sg + tb * sb)),
          double(rr == 0 ? R(0) : tg),
          double(rr == 0 ? R(0) : tb),
          s,
          max_s,
          uu < R(0.1) * (of_g + of_b) ? 1.0 : 0.0};
}

// --- slices in one piece ------------------------------------------------------------------------

template <class T, bool BUFFER>
void sums(const T *x, const T *g, const T *b, int64_t n, double *out) {
  constexpr int KINDS = BUFFER ? PRODUCTS : XB;
  double wide[PRODUCTS][HALF] = {};
  int64_t i = 0;
  while (n - i >= LANES) {
    const int64_t end = i + std::min(FEW, (n - i) / LANES) * LANES;
    T near[PRODUCTS][LANES] = {};
    for (; i < end; i += LANES) {
      __builtin_prefetch(x + i + AHEAD);
      __builtin_prefetch(g + i + AHEAD);
      if (BUFFER) __builtin_prefetch(b + i + AHEAD);
#pragma omp simd
      for (int l = 0; l < LANES; ++l) {
        const T p = x[i + l], q = g[i + l];
        near[XX][l] += p * p, near[XG][l] += p * q, near[GG][l] += q * q;
        if (BUFFER) {
          const T w = b[i + l];
          near[XB][l] += p * w, near[GB][l] += q * w, near[BB][l] += w * w;
        }
      }
    }
    for (int kind = 0; kind < KINDS; ++kind)
#pragma omp simd
      for (int l = 0; l < HALF; ++l)
        wide[kind][l] += double(near[kind][l]) + double(near[kind][l + HALF]);
  }
  for (int l = 0; i < n; ++i, l = (l + 1) % HALF) {
    const double p = x[i], q = g[i], w = BUFFER ? b[i] : T(0);
    wide[XX][l] += p * p, wide[XG][l] += p * q, wide[GG][l] += q * q;
    if (BUFFER) wide[XB][l] += p * w, wide[GB][l] += q * w, wide[BB][l] += w * w;
  }
  for (int kind = 0; kind < KINDS; ++kind) {
    const double *t = wide[kind];
    out[kind] = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
  }
}

// While one piece is written, memory can bring the piece that is `ahead` of it (0: none).
template <class C, class T, bool BUFFER>
void write(T *y, const T *x, const T *g, T *b, int64_t n, const double *k, int64_t apart, int64_t ahead) {
  const C x1 = k[X1 * apart], x2 = k[X2 * apart], x3 = k[X3 * apart];
  const C b1 = k[B1 * apart], b2 = k[B2 * apart], b3 = k[B3 * apart];
  constexpr int64_t line = 64 / sizeof(T);
  int64_t i = 0;
  for (; i + line <= n; i += line) {
    if (ahead) {
      __builtin_prefetch(x + i + ahead, 1);
      __builtin_prefetch(g + i + ahead);
      if (BUFFER) __builtin_prefetch(b + i + ahead, 1);
    }
#pragma omp simd
    for (int64_t j = i; j < i + line; ++j)
      put<C, T, BUFFER>(y, x, g, b, j, x1, x2, x3, b1, b2, b3);
  }
  for (; i < n; ++i) put<C, T, BUFFER>(y, x, g, b, i, x1, x2, x3, b1, b2, b3);
}

// --- one weight ---------------------------------------------------------------------------------

template <class T, bool BUFFER>
struct Slices {
  const Options &o;
  const Weight &w;
  const bool alone;  // whether this thread has the weight for itself
  T *x, *b, *s, *max_s, *y;
  const T *g;
  const int64_t wide;
  static constexpr int64_t LINE = 64 / sizeof(T);  // numbers that memory brings at once
  static constexpr int KINDS = BUFFER ? PRODUCTS : XB;

  Slices(const Options &o, const Weight &w, bool alone)
      : o(o), w(w), alone(alone), x((T *)w.x), b((T *)w.b), s((T *)w.s), max_s((T *)w.max_s),
        y((T *)(w.y ? w.y : w.x)), g((const T *)w.g), wide(w.count * w.inner) {}

  // Slices go in blocks: products, coefficients, update, while they are in the cache. Threads have
  // a block each, or share all of them.
  void run(Task task) const {
    const Blocks blocks = plan();
    const int64_t block = blocks.size;
    const bool shared = blocks.shared;
    Range range;
    auto step = [=](int64_t first, double *products, Range &found) {
      const int64_t n = std::min(block, w.count - first);
      double *const k = products + PRODUCTS * block;
      if (task == GRAM && w.along) {
        gram_exactly(first, n, shared);
      } else if (task == GRAM) {
        gram(first, n, w.numbers + first, w.count, shared);
      } else if (task == UPDATE) {
        update(first, n, w.numbers + first, w.count, shared, AHEAD, true);
      } else {
        gram(first, n, products, block, shared);
        for (int64_t i = 0; i < n; ++i) found.add(products[i]);
        s ? solve<true>(first, n, products, k, block) : solve<false>(first, n, products, k, block);
        update(first, n, k, block, shared, std::max(n * w.inner, AHEAD), false);
        for (int64_t i = 0; i < n; ++i)
          if (k[EXACT * block + i] == 2) mend(first + i);
      }
    };
    const int64_t numbers = task == STEP ? (PRODUCTS + COEFFICIENTS) * block : 0;
    if (alone || shared) {
      // No region of one thread around those of all: in it each would start its threads anew.
      std::vector<double> space(numbers);
      for (int64_t first = 0; first < w.count; first += block) step(first, space.data(), range);
    } else {
#pragma omp parallel reduction(join : range)
      {
        std::vector<double> space(numbers);
#pragma omp for schedule(static) nowait
        for (int64_t first = 0; first < w.count; first += block) step(first, space.data(), range);
      }
    }
    if (task == STEP) w.numbers[0] = range.least, w.numbers[1] = range.most;
  }

  struct Blocks {
    int64_t size;
    bool shared;
  };

  Blocks plan() const {
    const int64_t threads = alone ? 1 : omp_get_max_threads();
    const int64_t share = std::max<int64_t>(1, (w.count + threads - 1) / threads);
    if (w.outer == 1) {
      if (!alone && (w.count < threads || w.inner >= LONG)) return {1, true};
      const int64_t fit = std::min(MANY, BLOCK / std::max<int64_t>(1, w.inner));
      return {std::max<int64_t>(1, std::min(fit, share)), false};
    }
    // Panels of columns, if the cache leaves panels worth reading; else all columns at once.
    const int64_t bytes = std::max<int64_t>(1, w.outer * w.inner) * 3 * sizeof(T);
    const int64_t fit = panel() / bytes;
    if (!alone && fit * w.inner < std::min(NARROW, wide)) return {w.count, true};
    return {std::max<int64_t>(1, std::min(fit, share)), false};
  }

  // --- products ---------------------------------------------------------------------------------

  // The products of n slices, each kind of them `apart` from the next.
  void gram(int64_t first, int64_t n, double *out, int64_t apart, bool shared) const {
    if (w.outer != 1) return gram_of_columns(first, n, out, apart, shared);
    for (int64_t i = 0; i < n; ++i) {
      double found[PRODUCTS] = {};
      const int64_t at = (first + i) * w.inner;
      shared ? sum_together(at, found) : sums<T, BUFFER>(x + at, g + at, b + at, w.inner, found);
      for (int kind = 0; kind < KINDS; ++kind) out[kind * apart + i] = found[kind];
    }
  }

  // Of one slice, by all threads. Sums of chunks are added in their order, so that the number of
  // threads does not matter.
  void sum_together(int64_t start, double *out) const {
    const int64_t chunks = (w.inner + CHUNK - 1) / CHUNK;
    std::vector<double> parts(PRODUCTS * chunks);
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t at = start + c * CHUNK, n = std::min(CHUNK, w.inner - c * CHUNK);
      sums<T, BUFFER>(x + at, g + at, b + at, n, parts.data() + PRODUCTS * c);
    }
    for (int64_t c = 0; c < chunks; ++c)
      for (int kind = 0; kind < KINDS; ++kind) out[kind] += parts[PRODUCTS * c + kind];
  }

  // Of slices that are strided: columns of (outer, count * inner), of which `inner` are a slice.
  void gram_of_columns(int64_t first, int64_t n, double *out, int64_t apart, bool shared) const {
    const int64_t width = n * w.inner, left = first * w.inner;
    const int64_t high = height(shared), stripes = (w.outer + high - 1) / high;
    const bool direct = stripes == 1 && w.inner == 1;
    std::vector<double> space(direct ? 0 : stripes * KINDS * width);
    double *const sum = direct ? out : space.data();
    const int64_t step = direct ? apart : width;
    for (int kind = 0; kind < KINDS; ++kind) std::fill_n(out + kind * apart, n, 0.0);
#pragma omp parallel for schedule(static) if (shared)
    for (int64_t stripe = 0; stripe < stripes; ++stripe) {
      const int64_t end = std::min((stripe + 1) * high, w.outer);
      for (int64_t j = 0; j < width; j += TILE) {
        double *const tile = sum + stripe * KINDS * width + j;
        const int64_t columns = std::min(TILE, width - j);
        int64_t row = stripe * high;
        for (; row + FEW <= end; row += FEW) gather<FEW>(row, left + j, columns, tile, step);
        for (; row < end; ++row) gather<1>(row, left + j, columns, tile, step);
      }
    }
    if (direct) return;
#pragma omp parallel for schedule(static) if (shared)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t part = 0; part < stripes * KINDS; ++part)
        for (int64_t j = i * w.inner; j < (i + 1) * w.inner; ++j)
          out[part % KINDS * apart + i] += sum[part * width + j];
  }

  // Rows of a stripe, whatever the number of threads.
  int64_t height(bool shared) const {
    const int64_t all = std::max<int64_t>(1, w.outer);
    return shared ? std::max(HIGH, (all + STRIPES - 1) / STRIPES) : all;
  }

  // Adds N rows to the sums of n columns.
  template <int N>
  void gather(int64_t row, int64_t left, int64_t n, double *sum, int64_t apart) const {
    const int64_t wide = this->wide, at = row * wide + left;
    const T *px = x + at, *pg = g + at, *pb = BUFFER ? b + at : nullptr;
    auto add = [=](int64_t i) {
      T xx = 0, xg = 0, gg = 0, xb = 0, gb = 0, bb = 0;
      for (int r = 0; r < N; ++r) {
        const T p = px[r * wide + i], q = pg[r * wide + i];
        xx += p * p, xg += p * q, gg += q * q;
        if (BUFFER) {
          const T u = pb[r * wide + i];
          xb += p * u, gb += q * u, bb += u * u;
        }
      }
      sum[i] += xx, sum[apart + i] += xg, sum[2 * apart + i] += gg;
      if (BUFFER) sum[3 * apart + i] += xb, sum[4 * apart + i] += gb, sum[5 * apart + i] += bb;
    };
    // Of a panel the next rows are asked for; whole rows are read along.
    const int64_t ahead = n < std::min(TILE, wide) ? N * wide : NEAR;
    int64_t j = 0;
    for (; j + LINE <= n; j += LINE) {
      for (int r = 0; r < N; ++r) fetch(at + r * wide + j + ahead);
#pragma omp simd
      for (int64_t i = j; i < j + LINE; ++i) add(i);
    }
    for (; j < n; ++j) add(j);
  }

  // Asks memory for what is to be read soon. Addresses beyond an array's end do no harm.
  void fetch(int64_t at) const {
    __builtin_prefetch(x + at);
    __builtin_prefetch(g + at);
    if (BUFFER) __builtin_prefetch(b + at);
  }

  // Products in a wider type, of x and of g - along_g x and b - along_b x.
  template <class R>
  void exactly(int64_t first, int64_t n, const R *along_g, const R *along_b,
               Products<R> *out) const {
    for (int64_t row = 0; row < w.outer; ++row)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t from = (row * w.count + first + i) * w.inner;
        const R sg = along_g[i], sb = BUFFER ? along_b[i] : R(0);
        Products<R> s = out[i];
        for (int64_t j = from; j < from + w.inner; ++j) {
          const R p = x[j], q = g[j] - sg * p, u = BUFFER ? b[j] - sb * p : R(0);
          s.xx += p * p, s.xg += p * q, s.gg += q * q;
          s.xb += p * u, s.gb += q * u, s.bb += u * u;
        }
        out[i] = s;
      }
  }

  void gram_exactly(int64_t first, int64_t n, bool shared) const {
    using R = Wide<T>;
#pragma omp parallel for schedule(static) if (shared)
    for (int64_t from = first; from < first + n; from += NARROW) {
      const int64_t many = std::min(NARROW, first + n - from);
      std::vector<R> along(2 * many);
      for (int64_t i = 0; i < many; ++i) {
        along[i] = w.along[from + i];
        if (BUFFER) along[many + i] = w.along[w.count + from + i];
      }
      std::vector<Products<R>> found(many);
      exactly<R>(from, many, along.data(), along.data() + many, found.data());
      for (int64_t i = 0; i < many; ++i) {
        const Products<R> &p = found[i];
        const R all[PRODUCTS] = {p.xx, p.xg, p.gg, p.xb, p.gb, p.bb};
        for (int kind = 0; kind < KINDS; ++kind) w.numbers[kind * w.count + from + i] = all[kind];
      }
    }
  }

  // --- coefficients -----------------------------------------------------------------------------

  template <bool ADAM>
  void solve(int64_t first, int64_t n, const double *p, double *k, int64_t apart) const {
    switch (o.retraction) {
      case PROJECTIVE: return solve_on<PROJECTIVE, ADAM>(first, n, p, k, apart);
      case GREAT_CIRCLE: return solve_on<GREAT_CIRCLE, ADAM>(first, n, p, k, apart);
      case SCALED_GEODESIC: return solve_on<SCALED_GEODESIC, ADAM>(first, n, p, k, apart);
      case ADDITIVE: return solve_on<ADDITIVE, ADAM>(first, n, p, k, apart);
      case FRAME: return solve_on<FRAME, ADAM>(first, n, p, k, apart);
    }
  }

  // The coefficients of n slices from their products, both each kind `apart` from the next.
  template <Retraction WAY, bool ADAM>
  void solve_on(int64_t first, int64_t n, const double *__restrict p, double *__restrict k,
                int64_t apart) const {
    for (int64_t i = 0; i < n; ++i) {
      k[S * apart + i] = ADAM ? s[first + i] : T(0);
      k[MAX_S * apart + i] = ADAM && max_s ? max_s[first + i] : T(0);
    }
    const Options o = this->o;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      auto of = [=](int kind) { return BUFFER || kind < XB ? p[kind * apart + i] : 0.0; };
      const Products<double> q{of(XX), of(XG), of(GG), of(XB), of(GB), of(BB), false};
      const Coefficients c =
          coefficients<T, WAY, ADAM, BUFFER>(o, q, k[S * apart + i], k[MAX_S * apart + i]);
      // Where g or b is nearly parallel to x, the square of its tangent part would be rounding.
      const double left = q.gg * q.xx - q.xg * q.xg, left_b = q.bb * q.xx - q.xb * q.xb;
      double exact = c.cancelled;
      exact = left < 0.1 * q.gg * q.xx ? 1.0 : exact;
      if (BUFFER) exact = left_b < 0.1 * q.bb * q.xx ? 1.0 : exact;
      if (WAY == ADDITIVE || WAY == FRAME) exact = 0;
      k[EXACT * apart + i] = (q.xx + q.gg + q.bb) * 0 == 0 ? exact : 1.0;
      k[X1 * apart + i] = c.x1, k[X2 * apart + i] = c.x2, k[X3 * apart + i] = c.x3;
      k[B1 * apart + i] = c.b1, k[B2 * apart + i] = c.b2, k[B3 * apart + i] = c.b3;
      k[S * apart + i] = c.s, k[MAX_S * apart + i] = c.max_s;
    }
    for (int64_t i = 0; i < n; ++i)
      if (k[EXACT * apart + i] != 0) solve_exactly<WAY, ADAM>(first + i, k + i, apart);
    for (int64_t i = 0; ADAM && i < n; ++i) {
      s[first + i] = T(k[S * apart + i]);
      if (max_s) max_s[first + i] = T(k[MAX_S * apart + i]);
    }
  }

  // From products in a wider type, the tangent parts formed: two more looks at a slice.
  template <Retraction WAY, bool ADAM>
  void solve_exactly(int64_t i, double *k, int64_t apart) const {
    using R = Wide<T>;
    const R nothing = 0;
    Products<R> all, parts;
    exactly<R>(i, 1, &nothing, &nothing, &all);
    const R per = all.xx > 0 ? 1 / all.xx : all.xx, sg = all.xg * per, sb = all.xb * per;
    exactly<R>(i, 1, &sg, &sb, &parts);
    parts.xg = all.xg, parts.xb = all.xb, parts.tangent = true;
    const Coefficients c = coefficients<T, WAY, ADAM, BUFFER>(o, parts, ADAM ? s[i] : T(0),
                                                           ADAM && max_s ? max_s[i] : T(0));
    const double found[] = {c.x1, c.x2, c.x3, c.b1, c.b2, c.b3, c.s, c.max_s};
    for (int kind = 0; kind < EXACT; ++kind) k[kind * apart] = found[kind];
    const bool moved = c.x1 != 1 || c.x2 != 0 || c.x3 != 0;
    if (on_sphere(WAY) && moved) k[EXACT * apart] = 2;
  }

  // --- update -----------------------------------------------------------------------------------

  // Writes n slices, backwards: what was read last is still in the cache. Careful arithmetic is
  // in double.
  void update(int64_t first, int64_t n, const double *k, int64_t apart, bool shared,
              int64_t ahead, bool all_exact) const {
    if (w.outer != 1) return update_columns(first, n, k, apart, shared, all_exact);
    const int64_t chunk = shared ? CHUNK : w.inner, chunks = (w.inner + CHUNK - 1) / CHUNK;
    auto piece = [=](int64_t i, int64_t c) {
      const int64_t at = (first + i) * w.inner + c * chunk;
      const int64_t m = std::min(chunk, w.inner - c * chunk);
      const int64_t next = at + ahead + m < wide ? ahead : 0;
      all_exact || k[EXACT * apart + i] != 0
          ? write<double, T, BUFFER>(y + at, x + at, g + at, b + at, m, k + i, apart, next)
          : write<T, T, BUFFER>(y + at, x + at, g + at, b + at, m, k + i, apart, next);
    };
    for (int64_t i = 0; i < n; ++i) {
      if (!shared) {
        piece(i, 0);
        continue;
      }
#pragma omp parallel for schedule(static)
      for (int64_t back = 0; back < chunks; ++back) piece(i, chunks - 1 - back);
    }
  }

  void update_columns(int64_t first, int64_t n, const double *k, int64_t apart, bool shared,
                      bool exact) const {
    const int64_t width = n * w.inner, left = first * w.inner;
    const int64_t high = height(shared), stripes = (w.outer + high - 1) / high;
    for (int64_t i = 0; i < n && !exact; ++i) exact = k[EXACT * apart + i] != 0;
#pragma omp parallel for schedule(static) if (shared)
    for (int64_t stripe = 0; stripe < stripes; ++stripe) {
      const int64_t from = stripe * high, to = std::min(from + high, w.outer);
      for (int64_t j = 0; j < width; j += TILE) {
        const int64_t m = std::min(TILE, width - j);
        exact ? spread_all<double>(from, to, left, j, m, k, apart)
                : spread_all<T>(from, to, left, j, m, k, apart);
      }
    }
  }

  // Columns from left + j on, some rows of them.
  template <class C>
  void spread_all(int64_t from, int64_t to, int64_t left, int64_t j, int64_t n, const double *k,
                  int64_t apart) const {
    std::vector<C> near(6 * n);  // the coefficients of each column, side by side
    for (int kind = 0; kind < S; ++kind) {
      const double *k_i = k + kind * apart + j / w.inner;
      for (int64_t i = 0, within = j % w.inner; i < n; ++i) {
        near[kind * n + i] = *k_i;
        if (++within == w.inner) within = 0, ++k_i;
      }
    }
    for (; to - ROWS >= from; to -= ROWS) spread<C, ROWS>(to - ROWS, left + j, n, near.data());
    for (; to > from; --to) spread<C, 1>(to - 1, left + j, n, near.data());
  }

  template <class C, int N>
  void spread(int64_t row, int64_t left, int64_t n, const C *k) const {
    const int64_t wide = this->wide, at = row * wide + left;
    const T *const px = x + at;
    T *const py = y + at, *const pb = BUFFER ? b + at : nullptr;
    const T *const pg = g + at;
    const int64_t ahead = n < std::min(TILE, wide) ? -N * wide : NEAR;
    auto mix = [=](int64_t i) {
      const C x1 = k[i], x2 = k[n + i], x3 = BUFFER ? k[2 * n + i] : C(0);
      const C b1 = BUFFER ? k[3 * n + i] : C(0), b2 = BUFFER ? k[4 * n + i] : C(0);
      const C b3 = BUFFER ? k[5 * n + i] : C(0);
      for (int r = 0; r < N; ++r)
        put<C, T, BUFFER>(py, px, pg, pb, r * wide + i, x1, x2, x3, b1, b2, b3);
    };
    int64_t j = 0;
    for (; j + LINE <= n; j += LINE) {
      for (int r = 0; r < N && row >= N; ++r) fetch(at + r * wide + j + ahead);
#pragma omp simd
      for (int64_t i = j; i < j + LINE; ++i) mix(i);
    }
    for (; j < n; ++j) mix(j);
  }

  // Brings a slice of a sphere to its radius, as measured.
  void mend(int64_t i) const {
    Wide<T> squares = 0;
    over(i, [&](T &end) { squares += Wide<T>(end) * end; });
    const Wide<T> size = squares > 0 ? Wide<T>(o.radius) / std::sqrt(squares) : squares;
    over(i, [&](T &end) { end = T(size * end); });
  }

  // The numbers of a new slice, one after the other.
  template <class F>
  void over(int64_t i, F each) const {
    for (int64_t row = 0; row < w.outer; ++row) {
      T *const from = y + (row * w.count + i) * w.inner;
      for (int64_t j = 0; j < w.inner; ++j) each(from[j]);
    }
  }
};

// --- many weights -------------------------------------------------------------------------------

template <class T>
void run(Task task, const Options &o, const Weight &w, bool alone) {
  w.b ? Slices<T, true>(o, w, alone).run(task) : Slices<T, false>(o, w, alone).run(task);
}

template <class T>
void run_all(Task task, const Options *o, const Weight *w, int64_t n) {
  std::vector<int64_t> small;
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t size = w[i].outer * w[i].count * w[i].inner;
    if (size > SMALL) {
      run<T>(task, o[i], w[i], false);
    } else {
      small.push_back(i);
      total += size;
    }
  }
  const int64_t few = small.size();
#pragma omp parallel for schedule(dynamic) if (total > SMALL)
  for (int64_t j = 0; j < few; ++j) run<T>(task, o[small[j]], w[small[j]], true);
}

}  // namespace

// Products, updates and steps of n weights of one type.
#define FOR_EACH_TYPE(name, task)                                                                 \
  extern "C" void name##_float(const Options *o, const Weight *w, int64_t n) {                    \
    run_all<float>(task, o, w, n);                                                                \
  }                                                                                               \
  extern "C" void name##_double(const Options *o, const Weight *w, int64_t n) {                   \
    run_all<double>(task, o, w, n);                                                               \
  }
FOR_EACH_TYPE(gram, GRAM)
FOR_EACH_TYPE(update, UPDATE)
FOR_EACH_TYPE(step, STEP)
