/* embed backbone.safetensors PICTURE...
 *
 * Prints how similar the features of the first picture are to those of each other one. */
#include <math.h>
#include <stdio.h>

#include "moco.h"

static int failed(moco_error *error) {
  if (error == NULL) return 0;
  fprintf(stderr, "error: %s\n", moco_error_message(error));
  moco_error_free(error);
  return 1;
}

static double cosine(const float *a, const float *b, size_t n) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < n; ++i) {
    ab += (double)a[i] * b[i];
    aa += (double)a[i] * a[i];
    bb += (double)b[i] * b[i];
  }
  return ab / (sqrt(aa * bb) + 1e-30);
}

int main(int argc, char **argv) {
  moco_backbone *backbone = NULL;
  moco_features *features = NULL;
  if (argc < 3) {
    fprintf(stderr, "usage: embed backbone.safetensors PICTURE...\n");
    return 2;
  }
  const size_t n = (size_t)argc - 2;
  if (failed(moco_backbone_open(argv[1], NULL, &backbone))) return 1;
  int bad = failed(moco_backbone_extract_paths(backbone, (const char *const *)(argv + 2), n, &features));
  if (!bad) {
    size_t len = 0;
    const float *rows = moco_features_data(features, 0, &len);
    const size_t dim = len / n;
    for (size_t i = 0; i < n; ++i) printf("%.4f  %s\n", cosine(rows, rows + i * dim, dim), argv[i + 2]);
  }
  moco_features_free(features);
  moco_backbone_free(backbone);
  return bad;
}
