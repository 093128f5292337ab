include("${CMAKE_CURRENT_LIST_DIR}/csg_edgeTargets.cmake")
