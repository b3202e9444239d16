// A second unit that includes the header: what is defined twice would not link.
#include <moco.hpp>

std::size_t taps_seen_from_elsewhere(const moco::Backbone& backbone) { return backbone.taps().size(); }
