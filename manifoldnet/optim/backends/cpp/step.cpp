// A step on a manifold for the price of a plain one: each weight, gradient and buffer is read once,
// each weight and buffer written once (columns and whole tensors: read twice).
//
// Whatever the manifold, a step stays in the span of x, g and the buffer b of its slice:
//
//     x <- x1 x + x2 g + x3 b            b <- b1 x + b2 g + b3 b
//
// and the six coefficients depend on the slice only through its inner products <x,x>, <x,g>, <x,b>,
// <g,g>, <g,b>, <b,b>. So: one sweep for the inner products, a few numbers, one sweep that writes.
// Inner products are summed a few in the type of the weight, these sums in double; what is left of
// <v,v> - <x,v>^2/<x,x>, the square of a tangent part, is exact to rounding unless it is small. Then,
// and where squares overflow, the part is formed in a wider type, and x is measured after its step.
//
// A slice that is zero, and on a sphere one whose step is zero, stays as it is.
//
// The formulas are those of manifoldnet/optim/plane.py, held to the reference path by the tests.

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

enum Set : int32_t { SPHERE = 0, SCALED = 1 };
enum Way : int32_t { PROJECTIVE = 0, GEODESIC = 1, ADDITIVE = 2 };

}  // namespace

// As in native/__init__.py, field for field.
struct Options {
  int32_t set, way;     // which manifold, which retraction
  int32_t adam;         // Adam, or SGD
  int32_t nesterov, amsgrad;
  int32_t first;        // whether the buffer has no value yet; for Adam it has zeros
  double radius;
  double rate;          // lambda
  double sign;          // -1 to maximize
  double keep, fresh;   // b <- keep b + fresh d; momentum and 1 - dampening, or beta1 and 1 - beta1
  double beta2, eps, unbias1, unbias2;  // 1 - beta^t
  double share;         // of <d,d> that the second moment takes: 1, or one over a slice's size
};

struct Work {
  void *x, *g, *b;      // b may be null
  void *v, *top;        // second moments and their maxima, one number a slice; may be null
  int64_t outer, count, inner;  // a slice is x[:, i, :] of (outer, count, inner)
};

namespace {

constexpr int64_t SMALL = 1 << 16;  // numbers; below, a weight is one thread's
constexpr int64_t LONG = 1 << 17;   // a slice that is worth all threads
constexpr int64_t CHUNK = 1 << 14;  // numbers of it that are summed in one go
constexpr int64_t AHEAD = 1 << 10;  // numbers to ask memory for in advance, at least
constexpr int64_t NEAR = 1 << 7;    // the same, where many rows are read along
constexpr int64_t TILE = 1 << 13;   // columns whose sums stay in the cache
constexpr int64_t NARROW = 1 << 6;  // columns of a panel that is worth it, at least
constexpr int64_t STRIPES = 16;     // of rows, the sums of which are kept apart, at most
constexpr int64_t HIGH = 64;        // rows of a stripe, at least
constexpr int ROWS = 4;             // that are read and written together
constexpr int64_t FEW = 8;          // products that are summed before their sum is taken to double
constexpr int LANES = 16;           // sums that are kept apart so that none waits for the last one

// Bytes of columns that stay in a processor's own cache.
int64_t panel() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (cache > 0) return cache / 4 * 3;
#endif
  return 3 << 18;
}

// What a slice is summed in where the ordinary sums do not do: its squares have twice the exponent.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, float>, double, long double>;

template <class R>
struct Products {
  R xx = 0, xg = 0, xb = 0, gg = 0, gb = 0, bb = 0;
  bool tangent = false;  // whether the last three are of what is at right angles to x

  void add(const Products &s) {
    xx += s.xx, xg += s.xg, xb += s.xb;
    gg += s.gg, gb += s.gb, bb += s.bb;
  }
};

using Sums = Products<double>;

// The six coefficients of a slice, and whether rounding on the way would be too much.
struct Mix {
  double x1 = 1, x2 = 0, x3 = 0, b1 = 0, b2 = 0, b3 = 0;
  double moment = 0, top = 0;  // Adam's
  char care = 0;               // 1: to be written in a wider type; 2: and x to be measured after it
  bool cancelled = false;      // the step is all but nothing beside what it was made of
};

// The least and the largest <x,x> of some slices.
struct Range {
  double least = std::numeric_limits<double>::infinity(), most = 0;

  // NaN, which is neither, stays out of both.
  void add(double xx) { least = std::min(least, xx), most = std::max(most, xx); }
  void add(const Range &r) { least = std::min(least, r.least), most = std::max(most, r.most); }
};
#pragma omp declare reduction(join : Range : omp_out.add(omp_in)) initializer(omp_priv = Range())

// Writes a number, computing in C.
template <class C, class T, bool OLD, bool NEW>
inline void put(T *x, const T *g, T *b, int64_t i, C x1, C x2, C x3, C b1, C b2, C b3) {
  const C p = x[i], q = g[i], w = OLD ? b[i] : T(0);
  C y = x1 * p + x2 * q, z = b1 * p + b2 * q;
  if (OLD) y += x3 * w, z += b3 * w;
  x[i] = T(y);
  if (NEW) b[i] = T(z);
}

// How a step u = s_u x + t_u carries the point, x' = a x + b t_u, and a vector v = s_v x + t_v:
// v' = c x + d t_u + e t_v; t_u and t_v at right angles to x.
template <class R>
struct Carried {
  R a, b, c, d, e;
};

template <class R>
inline Carried<R> carry(const Options &o, R rr, R su, R sv, R uu, R uv) {
  const R r = std::sqrt(rr), radius = o.radius;
  if (o.way == ADDITIVE) return {1 + su, 1, sv, 0, 1};
  if (o.way == PROJECTIVE) {
    const R end = std::sqrt(rr + uu), per_end = 1 / end;
    const R turn = -uv / (end + r), size = radius * per_end;
    return {size, size, turn * (1 / r + per_end), turn * per_end, 1};
  }
  const R unit = o.set == SPHERE ? radius * radius : rr;
  const R turned = std::sqrt(uu / unit), angle = std::min(turned, R(4503599627370496.0));
  const R cos = std::cos(angle), sin = std::sin(angle);
  const bool still = angle < R(1e-150);
  const R sinc = still ? 1 : sin / turned;
  const R half = std::sin(angle / 2);
  const R versed = still ? R(0.5) : 2 * half * half / (uu / unit);
  const R along = uv / unit;
  if (o.set == SPHERE) {
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

// The coefficients of a slice from its products; `moment` and `top` are its second moments so far.
template <class T, bool NEW, class R>
Mix mix(const Options &o, const Products<R> &s, double moment, double top) {
  const R rr = s.xx;
  // d = scale g + along x: the Riemannian gradient.
  const R scale = o.set == SPHERE ? R(o.sign) : R(o.sign) * rr;
  const R dg = o.first ? scale : scale * R(o.fresh);
  const R db = o.first ? 0 : o.keep;
  // The new buffer n = dg g + db b, and the step u = -rate d, -rate n or Nesterov's of both.
  const bool plain = !o.adam && o.keep == 0;
  const R ng = plain ? scale : dg, nb = plain ? R(0) : db;
  // g and b taken apart: a share of x, and what is at right angles to it. Of zero nothing is.
  const R per = rr > 0 ? 1 / rr : rr, sg = s.xg * per, sb = nb == 0 ? R(0) : s.xb * per;
  const R gg = s.tangent ? s.gg : std::max(s.gg - sg * s.xg, R(0));
  const R gb = nb == 0 ? R(0) : s.tangent ? s.gb : s.gb - sg * s.xb;
  const R bb = nb == 0 ? R(0) : s.tangent ? s.bb : std::max(s.bb - sb * s.xb, R(0));
  Mix m;
  R rate = o.rate;
  if (o.adam) {
    const R dd = o.set == SPHERE ? gg : rr * (gg + sg * s.xg);
    R now = m.moment = T(R(o.beta2) * R(moment) + R(1 - o.beta2) * dd * R(o.share));
    if (o.amsgrad) m.top = now = std::max(R(top), now);
    const R root = std::sqrt(now / R(o.unbias2)) + R(o.eps);
    // Without eps: where there never was a gradient there is no step.
    rate = root == 0 ? R(0) : rate / (root * R(o.unbias1));
  }
  if (rr == 0) return m;  // no direction: it stays, and its buffer is zero
  const R ug = -rate * (o.nesterov ? scale + R(o.keep) * ng : ng);
  const R ub = -rate * (o.nesterov ? R(o.keep) * nb : nb);
  const R of_g = ug * ug * gg, of_b = ub * ub * bb;
  const R uu = std::max(of_g + 2 * ug * ub * gb + of_b, R(0));
  m.cancelled = uu < R(0.1) * (of_g + of_b);
  const R uv = ug * ng * gg + (ug * nb + ub * ng) * gb + ub * nb * bb;
  const bool scaled = o.set == SCALED;
  const R su = scaled ? ug * sg + ub * sb : R(0), sv = scaled ? ng * sg + nb * sb : R(0);
  const Carried<R> k = carry<R>(o, rr, su, sv, uu, uv);
  m.care = s.tangent;
  if (scaled || !(uu == 0)) {
    if (s.tangent && !scaled) m.care = 2;
    m.x1 = k.a - k.b * (ug * sg + ub * sb), m.x2 = k.b * ug, m.x3 = k.b * ub;
  }
  if (NEW) {
    const R tg = (k.d == 0 ? R(0) : k.d * ug) + k.e * ng;
    const R tb = (k.d == 0 ? R(0) : k.d * ub) + k.e * nb;
    m.b1 = k.c - (tg * sg + tb * sb), m.b2 = tg, m.b3 = tb;
  }
  return m;
}

// OLD: there is a buffer with a value; NEW: it gets one.
template <class T, bool OLD>
Sums sums(const T *x, const T *g, const T *b, int64_t n) {
  double xx[LANES] = {}, xg[LANES] = {}, gg[LANES] = {};
  double xb[LANES] = {}, gb[LANES] = {}, bb[LANES] = {};
  int64_t i = 0;
  while (n - i >= LANES) {
    const int64_t end = i + std::min(FEW, (n - i) / LANES) * LANES;
    T fxx[LANES] = {}, fxg[LANES] = {}, fgg[LANES] = {};
    T fxb[LANES] = {}, fgb[LANES] = {}, fbb[LANES] = {};
    for (; i < end; i += LANES) {
      __builtin_prefetch(x + i + AHEAD);
      __builtin_prefetch(g + i + AHEAD);
      if (OLD) __builtin_prefetch(b + i + AHEAD);
#pragma omp simd
      for (int l = 0; l < LANES; ++l) {
        const T p = x[i + l], q = g[i + l];
        fxx[l] += p * p, fxg[l] += p * q, fgg[l] += q * q;
        if (OLD) {
          const T w = b[i + l];
          fxb[l] += p * w, fgb[l] += q * w, fbb[l] += w * w;
        }
      }
    }
#pragma omp simd
    for (int l = 0; l < LANES; ++l) {
      xx[l] += fxx[l], xg[l] += fxg[l], gg[l] += fgg[l];
      if (OLD) xb[l] += fxb[l], gb[l] += fgb[l], bb[l] += fbb[l];
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    const double p = x[i], q = g[i], w = OLD ? b[i] : T(0);
    xx[l] += p * p, xg[l] += p * q, gg[l] += q * q;
    xb[l] += p * w, gb[l] += q * w, bb[l] += w * w;
  }
  Sums s;
  for (int l = 0; l < LANES; ++l) {
    s.xx += xx[l], s.xg += xg[l], s.xb += xb[l];
    s.gg += gg[l], s.gb += gb[l], s.bb += bb[l];
  }
  return s;
}

// While one piece is written, memory can bring the piece that is `ahead` of it (0: none).
template <class C, class T, bool OLD, bool NEW>
void write_in(T *x, const T *g, T *b, int64_t n, const Mix &m, int64_t ahead) {
  const C x1 = m.x1, x2 = m.x2, x3 = m.x3, b1 = m.b1, b2 = m.b2, b3 = m.b3;
  constexpr int64_t line = 64 / sizeof(T);
  int64_t i = 0;
  for (; i + line <= n; i += line) {
    if (ahead) {
      __builtin_prefetch(x + i + ahead, 1);
      __builtin_prefetch(g + i + ahead);
      if (NEW) __builtin_prefetch(b + i + ahead, 1);
    }
#pragma omp simd
    for (int64_t j = i; j < i + line; ++j) put<C, T, OLD, NEW>(x, g, b, j, x1, x2, x3, b1, b2, b3);
  }
  for (; i < n; ++i) put<C, T, OLD, NEW>(x, g, b, i, x1, x2, x3, b1, b2, b3);
}

template <class T, bool OLD, bool NEW>
void write(T *x, const T *g, T *b, int64_t n, const Mix &m, int64_t ahead = 0) {
  if (m.care) return write_in<double, T, OLD, NEW>(x, g, b, n, m, ahead);
  write_in<T, T, OLD, NEW>(x, g, b, n, m, ahead);
}

template <class T, bool OLD, bool NEW>
struct Step {
  const Options &o;
  const Work &w;
  T *x, *b, *v, *top;
  const T *g;
  static constexpr int64_t LINE = 64 / sizeof(T);  // numbers that memory brings at once
  static constexpr int64_t SETS = OLD ? 6 : 3;     // kinds of inner products

  Step(const Options &o, const Work &w)
      : o(o), w(w), x((T *)w.x), b((T *)w.b), v((T *)w.v), top((T *)w.top), g((const T *)w.g) {}

  Mix coefficients(const Sums &s, int64_t i) const {
    const double moment = v ? v[i] : T(0), high = top ? top[i] : T(0);
    // Where g or b is nearly parallel to x, the square of its tangent part would be rounding.
    const double least = 0.1;
    const bool lost = s.gg * s.xx - s.xg * s.xg < least * s.gg * s.xx ||
                      (OLD && s.bb * s.xx - s.xb * s.xb < least * s.bb * s.xx);
    const bool finite = std::isfinite(s.xx) && std::isfinite(s.gg) && std::isfinite(s.bb);
    Mix m;
    if (!lost && finite) m = mix<T, NEW>(o, s, moment, high);
    if ((lost || m.cancelled || !finite) && (o.way != ADDITIVE || !finite))
      m = mix<T, NEW>(o, tangents(i), moment, high);
    else if (lost)
      m = mix<T, NEW>(o, s, moment, high);
    if (v) v[i] = T(m.moment);
    if (top) top[i] = T(m.top);
    return m;
  }

  // The same sums in a wider type, the last three of the tangent parts: two more looks at a slice.
  Products<Wide<T>> tangents(int64_t i) const {
    using R = Wide<T>;
    Products<R> s;
    s.tangent = true;
    each(i, [&](R p, R q, R u) { s.xx += p * p, s.xg += p * q, s.xb += p * u; });
    const R per = s.xx > 0 ? 1 / s.xx : s.xx, sg = s.xg * per, sb = s.xb * per;
    each(i, [&](R p, R q, R u) {
      q -= sg * p, u -= sb * p;
      s.gg += q * q, s.gb += q * u, s.bb += u * u;
    });
    return s;
  }

  // Brings a slice of a sphere to its radius, as measured.
  void mend(int64_t i) const {
    Wide<T> xx = 0;
    each(i, [&](Wide<T> p, Wide<T>, Wide<T>) { xx += p * p; });
    const Wide<T> size = xx > 0 ? Wide<T>(o.radius) / std::sqrt(xx) : xx;
    for (int64_t row = 0; row < w.outer; ++row) {
      T *const from = x + (row * w.count + i) * w.inner;
      for (int64_t j = 0; j < w.inner; ++j) from[j] = T(size * from[j]);
    }
  }

  template <class Look>
  void each(int64_t i, Look look) const {
    for (int64_t row = 0; row < w.outer; ++row) {
      const int64_t from = (row * w.count + i) * w.inner;
      for (int64_t j = from; j < from + w.inner; ++j) look(x[j], g[j], OLD ? b[j] : T(0));
    }
  }

  // Slices that lie in one piece each: read, and while it is in the cache, written.
  Range rows(bool alone) const {
    const int64_t m = w.inner;
    Range range;
    if (!alone && (w.count < omp_get_max_threads() || m >= LONG)) {
      for (int64_t i = 0; i < w.count; ++i) range.add(one(i));
      return range;
    }
    const int64_t ahead = std::max(m, AHEAD), end = w.count * m;
#pragma omp parallel for schedule(static) reduction(join : range) if (!alone)
    for (int64_t i = 0; i < w.count; ++i) {
      const int64_t at = i * m;
      T *xi = x + at, *bi = NEW ? b + at : nullptr;
      const Sums s = sums<T, OLD>(xi, g + at, bi, m);
      range.add(s.xx);
      const Mix k = coefficients(s, i);
      write<T, OLD, NEW>(xi, g + at, bi, m, k, at + m + ahead < end ? ahead : 0);
      if (k.care == 2) mend(i);
    }
    return range;
  }

  // One slice in one piece, by all threads. Sums of chunks are added in their order, so that the
  // number of threads does not matter.
  double one(int64_t i) const {
    const int64_t m = w.inner, start = i * m, chunks = (m + CHUNK - 1) / CHUNK;
    std::vector<Sums> parts(chunks);
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t at = start + c * CHUNK, n = std::min(CHUNK, m - c * CHUNK);
      parts[c] = sums<T, OLD>(x + at, g + at, NEW ? b + at : nullptr, n);
    }
    Sums s;
    for (const Sums &part : parts) s.add(part);
    const Mix k = coefficients(s, i);
    // Backwards: what was read last is still in the cache.
#pragma omp parallel for schedule(static)
    for (int64_t back = 0; back < chunks; ++back) {
      const int64_t c = chunks - 1 - back;
      const int64_t at = start + c * CHUNK, n = std::min(CHUNK, m - c * CHUNK);
      write<T, OLD, NEW>(x + at, g + at, NEW ? b + at : nullptr, n, k, AHEAD);
    }
    if (k.care == 2) mend(i);
    return s.xx;
  }

  // Slices that are strewn: columns of (outer, count * inner), of which `inner` are a slice. In
  // panels of columns that stay in the cache from their first look to the second, if that leaves
  // panels worth reading; else all of them at once, by stripes of rows.
  Range columns(bool alone) const {
    const int64_t wide = w.count * w.inner;
    const int64_t most_slices = panel() / (w.outer * w.inner * 3 * int64_t(sizeof(T)));
    if (!alone && most_slices * w.inner < std::min(NARROW, wide)) return stripes();
    const int64_t share = alone ? w.count : w.count / omp_get_max_threads() + 1;
    const int64_t slices = std::max<int64_t>(1, std::min(most_slices, share));
    Range range;
#pragma omp parallel for schedule(static) reduction(join : range) if (!alone)
    for (int64_t i = 0; i < w.count; i += slices) {
      const int64_t left = i * w.inner, n = std::min(slices * w.inner, wide - left);
      std::vector<double> space(SETS * n, 0.0), mixes(6 * n);
      std::vector<char> care(n / w.inner);
      gather_all(0, w.outer, left, n, space.data(), n);
      range.add(mixtures(space.data(), 1, i, n / w.inner, mixes.data(), care, true));
      spread_all(0, w.outer, left, n, mixes.data(), n, any(care));
      mend_all(care, i, true);
    }
    return range;
  }

  Range stripes() const {
    const int64_t wide = w.count * w.inner;
    // Of rows, whatever the number of threads.
    const int64_t high = std::max(HIGH, (w.outer + STRIPES - 1) / STRIPES);
    const int64_t stripes = (w.outer + high - 1) / high;
    std::vector<double> space(stripes * SETS * wide, 0.0), mixes(6 * wide);
#pragma omp parallel for schedule(static)
    for (int64_t stripe = 0; stripe < stripes; ++stripe) {
      const int64_t from = stripe * high, to = std::min(from + high, w.outer);
      for (int64_t left = 0; left < wide; left += TILE) {
        double *sum = space.data() + stripe * SETS * wide + left;
        gather_all(from, to, left, std::min(TILE, wide - left), sum, wide);
      }
    }
    std::vector<char> care(w.count);
    const Range range = mixtures(space.data(), stripes, 0, w.count, mixes.data(), care, false);
    const bool careful = any(care);
#pragma omp parallel for schedule(static)
    for (int64_t stripe = 0; stripe < stripes; ++stripe) {
      const int64_t from = stripe * high, to = std::min(from + high, w.outer);
      for (int64_t left = 0; left < wide; left += TILE)
        spread_all(from, to, left, std::min(TILE, wide - left), mixes.data() + left, wide, careful);
    }
    mend_all(care, 0, false);
    return range;
  }

  static bool any(const std::vector<char> &care) {
    return std::any_of(care.begin(), care.end(), [](char c) { return c; });
  }

  void mend_all(const std::vector<char> &care, int64_t first, bool alone) const {
    const int64_t count = care.size();
#pragma omp parallel for schedule(static) if (!alone)
    for (int64_t i = 0; i < count; ++i)
      if (care[i] == 2) mend(first + i);
  }

  // Adds some rows to the sums of n columns, which are `apart` from one kind of sum to the next.
  void gather_all(int64_t from, int64_t to, int64_t left, int64_t n, double *sum,
                  int64_t apart) const {
    for (; from + FEW <= to; from += FEW) gather<FEW>(from, left, n, sum, apart);
    for (; from < to; ++from) gather<1>(from, left, n, sum, apart);
  }

  template <int N>
  void gather(int64_t row, int64_t left, int64_t n, double *sum, int64_t apart) const {
    const int64_t wide = w.count * w.inner, at = row * wide + left;
    const T *px = x + at, *pg = g + at, *pb = OLD ? b + at : nullptr;
    auto add = [=](int64_t i) {
      T xx = 0, xg = 0, gg = 0, xb = 0, gb = 0, bb = 0;
      for (int r = 0; r < N; ++r) {
        const T p = px[r * wide + i], q = pg[r * wide + i];
        xx += p * p, xg += p * q, gg += q * q;
        if (OLD) {
          const T u = pb[r * wide + i];
          xb += p * u, gb += q * u, bb += u * u;
        }
      }
      sum[i] += xx, sum[apart + i] += xg, sum[2 * apart + i] += gg;
      if (OLD) sum[3 * apart + i] += xb, sum[4 * apart + i] += gb, sum[5 * apart + i] += bb;
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
    if (OLD) __builtin_prefetch(b + at);
  }

  // The coefficients of some slices, column by column, from the sums of all stripes.
  Range mixtures(const double *sum, int64_t stripes, int64_t first, int64_t count, double *mixes,
                 std::vector<char> &care, bool alone) const {
    const int64_t n = count * w.inner;
    Range range;
#pragma omp parallel for schedule(static) reduction(join : range) if (!alone)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = i * w.inner, to = from + w.inner;
      double all[6] = {};
      if (n == count && stripes == 1) {
        for (int64_t set = 0; set < SETS; ++set) all[set] = sum[set * n + i];
      } else {
        for (int64_t set = 0; set < SETS; ++set)
          for (int64_t stripe = 0; stripe < stripes; ++stripe)
            for (int64_t j = from; j < to; ++j) all[set] += sum[(stripe * SETS + set) * n + j];
      }
      range.add(all[0]);
      Sums s;
      s.xx = all[0], s.xg = all[1], s.gg = all[2], s.xb = all[3], s.gb = all[4], s.bb = all[5];
      const Mix m = coefficients(s, first + i);
      for (int64_t j = from; j < to; ++j) {
        mixes[j] = m.x1, mixes[n + j] = m.x2;
        if (NEW) mixes[2 * n + j] = m.x3, mixes[3 * n + j] = m.b1, mixes[4 * n + j] = m.b2;
        if (NEW) mixes[5 * n + j] = m.b3;
      }
      care[i] = m.care;
    }
    return range;
  }

  // Writes n columns of some rows, backwards: what was read last is still in the cache. Their
  // coefficients are `apart` from one kind to the next.
  void spread_all(int64_t from, int64_t to, int64_t left, int64_t n, const double *k,
                  int64_t apart, bool careful) const {
    careful ? spread_in<double>(from, to, left, n, k, apart)
            : spread_in<T>(from, to, left, n, k, apart);
  }

  template <class C>
  void spread_in(int64_t from, int64_t to, int64_t left, int64_t n, const double *k,
                 int64_t apart) const {
    std::vector<C> near(6 * n);  // in the type of the arithmetic, side by side
    for (int64_t kind = 0; kind < 6; ++kind)
      std::copy_n(k + kind * apart, n, near.data() + kind * n);
    for (; to - ROWS >= from; to -= ROWS) spread<C, ROWS>(to - ROWS, left, n, near.data());
    for (; to > from; --to) spread<C, 1>(to - 1, left, n, near.data());
  }

  template <class C, int N>
  void spread(int64_t row, int64_t left, int64_t n, const C *k) const {
    const int64_t wide = w.count * w.inner, at = row * wide + left;
    T *const px = x + at, *const pb = NEW ? b + at : nullptr;
    const T *const pg = g + at;
    const int64_t ahead = n < std::min(TILE, wide) ? -N * wide : NEAR;
    int64_t j = 0;
    for (; j + LINE <= n; j += LINE) {
      for (int r = 0; r < N && row >= N; ++r) fetch(at + r * wide + j + ahead);
#pragma omp simd
      for (int64_t i = j; i < j + LINE; ++i) mixed<C, N>(px, pg, pb, wide, k, n, i);
    }
    for (; j < n; ++j) mixed<C, N>(px, pg, pb, wide, k, n, j);
  }

  template <class C, int N>
  static inline void mixed(T *x, const T *g, T *b, int64_t wide, const C *k, int64_t n, int64_t i) {
    const C x1 = k[i], x2 = k[n + i], x3 = OLD ? k[2 * n + i] : C(0);
    const C b1 = NEW ? k[3 * n + i] : C(0), b2 = NEW ? k[4 * n + i] : C(0);
    const C b3 = OLD ? k[5 * n + i] : C(0);
    for (int r = 0; r < N; ++r) put<C, T, OLD, NEW>(x, g, b, r * wide + i, x1, x2, x3, b1, b2, b3);
  }

  Range run(bool alone) const {
    if (w.outer == 1) return rows(alone);
    return columns(alone);
  }
};

template <class T>
Range step(const Options &o, const Work &w, bool alone) {
  if (!w.b) return Step<T, false, false>(o, w).run(alone);
  if (o.first) return Step<T, false, true>(o, w).run(alone);
  return Step<T, true, true>(o, w).run(alone);
}

template <class T>
void all(const Options *o, const Work *work, Range *range, int64_t n) {
  std::vector<int64_t> small;
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t size = work[i].outer * work[i].count * work[i].inner;
    if (size > SMALL) {
      range[i] = step<T>(o[i], work[i], false);
    } else {
      small.push_back(i);
      total += size;
    }
  }
  const int64_t few = small.size();
#pragma omp parallel for schedule(dynamic) if (total > SMALL)
  for (int64_t j = 0; j < few; ++j) {
    const int64_t i = small[j];
    range[i] = step<T>(o[i], work[i], true);
  }
}

}  // namespace

// Steps n weights of one type; range[i] is that of <x,x> over the slices of weight i before its step.
extern "C" void step_float(const Options *o, const Work *w, Range *range, int64_t n) {
  all<float>(o, w, range, n);
}

extern "C" void step_double(const Options *o, const Work *w, Range *range, int64_t n) {
  all<double>(o, w, range, n);
}
